#!/usr/bin/env python3
"""Says whether a vLLM has what the plugin uses, by reading its source: nothing is installed, imported or run.

    pip download --no-deps --only-binary=:all: vllm==0.33.0     # some hundred MB
    scripts/check-vllm-wheel.py vllm-0.33.0-*.whl               # or the folder of an installed vllm

Exit code 0 if all is there; 1, and a line for each thing that is not.
"""

import ast
import importlib.util
import sys
import zipfile
from pathlib import Path

API = Path(__file__).resolve().parents[1] / "python" / "qqq-vllm" / "python" / "qqq_vllm" / "api.py"


class Source:
    """Modules of a wheel, or of a package's folder."""

    def __init__(self, path: Path) -> None:
        self.folder = path if path.is_dir() else None
        self.wheel = None if path.is_dir() else zipfile.ZipFile(path)
        self.trees: dict[str, ast.Module | None] = {}

    def _read(self, name: str) -> str | None:
        if self.wheel is not None:
            return self.wheel.read(name).decode() if name in self.wheel.NameToInfo else None
        file = self.folder.parent / name
        return file.read_text() if file.is_file() else None

    def tree(self, module: str) -> ast.Module | None:
        if module not in self.trees:
            base = module.replace(".", "/")
            files = (f"{base}.py", f"{base}/__init__.py")
            text = next((t for t in map(self._read, files) if t is not None), None)
            self.trees[module] = None if text is None else ast.parse(text)
        return self.trees[module]

    def is_package(self, module: str) -> bool:
        return self._read(module.replace(".", "/") + "/__init__.py") is not None

    def find(self, module: str, name: str):
        """What `getattr` would find: a definition, with a signature if it is a function."""
        if (module, name.split(".")[0]) == ("vllm.platforms", "current_platform"):
            # Made when it is first asked for.
            module, name = "vllm.platforms.interface", name.replace("current_platform", "Platform")
        if self.tree(module) is None:
            raise ImportError(f"No module named {module!r}")
        first, *rest = name.split(".")
        module, found = self.defined(module, first)
        for part in rest:
            module, found = self.member(module, found, part)
        return found

    def defined(self, module: str, name: str):
        """The module and node of a definition, wherever it was imported from."""
        tree = self.tree(module)
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                return module, node
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self.imported(module, node, alias.name)
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if isinstance(node, ast.Assign | ast.AnnAssign) and name in (getattr(t, "id", None) for t in targets):
                return module, node
        raise AttributeError(f"{module} has no {name}")

    def imported(self, module: str, node: ast.ImportFrom, name: str):
        source = node.module or ""
        if node.level:
            parents = module.split(".")
            parents = parents[: len(parents) - node.level + self.is_package(module)]
            source = ".".join([*parents, source] if source else parents)
        if self.tree(source) is None:
            return source, node  # of another package
        if self.tree(f"{source}.{name}") is not None:
            return f"{source}.{name}", self.tree(f"{source}.{name}")
        return self.defined(source, name)

    def member(self, module: str, owner: ast.AST, name: str):
        if not isinstance(owner, ast.ClassDef):
            raise AttributeError(f"{name} is looked for in what is no class")
        for node in ast.walk(owner):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return module, node
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if isinstance(node, ast.Assign | ast.AnnAssign) and name in (getattr(t, "id", None) for t in targets):
                return module, node
        for base in owner.bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(base, ast.Name):
                try:
                    return self.member(*self.defined(module, base.id), name)
                except AttributeError:
                    continue
        raise AttributeError(f"{owner.name} has no {name}")


def parameters(node: ast.AST) -> list[str] | None:
    """Names of a function's parameters; None where it takes any at all, or is none."""
    if not isinstance(node, ast.FunctionDef) or (node.args.vararg and node.args.kwarg):
        return None
    return [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).exists():
        print(__doc__, file=sys.stderr)
        return 2
    spec = importlib.util.spec_from_file_location("api", API)
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    lacks = api.missing(Source(Path(sys.argv[1])).find, parameters)
    for one in lacks:
        print(f"missing: {one}")
    if not lacks:
        print(f"{sum(map(len, api.USED.values()))} names that the plugin uses are there")
    return 1 if lacks else 0


if __name__ == "__main__":
    sys.exit(main())
