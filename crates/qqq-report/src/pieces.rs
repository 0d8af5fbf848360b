//! What pages are made of: the document, and SVG as a part of it: colours that follow its scheme, a name and a description.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::figure::COLOURS;

/// A page with all that it needs, as one file.
pub(crate) fn document(title: &str, version: &str, body: &Markup) -> String {
    let (light, dark) = css_colours();
    let css = include_str!("page.css").replace("LIGHT", &light).replace("DARK", &dark);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="generator" content={ "qqq " (version) };
                title { (title) }
                style { (PreEscaped(css)) }
            }
            body { main { (body) } }
        }
    };
    page.into_string()
}

/// An SVG of plotters as a page has it: text and axes in the colour of the page's text, series in its [colours](css_colours), as
/// wide as there is room, with a title that screen readers say.
pub(crate) fn embedded(svg: &str, id: &str, title: &str) -> String {
    let body = svg.find("<svg").map_or(svg, |start| &svg[start..]);
    let (head, rest) = body.split_once('>').unwrap_or((body, ""));
    let view_box =
        head.split("viewBox=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("0 0 1 1");
    let mut rest = rest.replace("\"#000000\"", "\"currentColor\"");
    for (index, colour) in COLOURS.iter().enumerate() {
        let hex = format!("\"#{:02X}{:02X}{:02X}\"", colour.0, colour.1, colour.2);
        rest = rest.replace(&hex, &format!("\"var(--c{index})\""));
    }
    let name = html! { title id={ (id) "-title" } { (title) } };
    format!(
        "<svg viewBox=\"{view_box}\" role=\"img\" aria-labelledby=\"{id}-title\" xmlns=\"http://www.w3.org/2000/svg\">{}{rest}",
        name.into_string()
    )
}

/// What the colours of series are on a light and on a dark page: the second are lighter ones of the same hues.
fn css_colours() -> (String, String) {
    let css = |change: &dyn Fn(u8) -> u8| {
        let of = |(index, c): (usize, &plotters::style::RGBColor)| {
            format!("--c{index}:#{:02x}{:02x}{:02x};", change(c.0), change(c.1), change(c.2))
        };
        COLOURS.iter().enumerate().map(of).collect::<String>()
    };
    (css(&|c| c), css(&|c| (f64::from(c) * 0.5 + 128.0).min(255.0) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_takes_the_colours_and_the_width_of_its_page() {
        let svg = "<svg width=\"640\" height=\"320\" viewBox=\"0 0 640 320\" xmlns=\"http://www.w3.org/2000/svg\">\n<line \
                   stroke=\"#000000\"/><line stroke=\"#0060A8\"/></svg>";
        let found = embedded(svg, "a", "<b> & c");
        assert!(
            found.starts_with("<svg viewBox=\"0 0 640 320\" role=\"img\" aria-labelledby=\"a-title\""),
            "{found}"
        );
        assert!(found.contains("<title id=\"a-title\">&lt;b&gt; &amp; c</title>"), "{found}");
        assert!(found.contains("\"currentColor\"") && found.contains("\"var(--c0)\""), "{found}");
        assert!(!found.contains("640\" height"), "{found}");
        let (light, dark) = css_colours();
        assert!(light.starts_with("--c0:#0060a8;--c1:#c64600;"), "{light}");
        assert!(dark.starts_with("--c0:#80b0d4;"), "{dark}");
    }
}
