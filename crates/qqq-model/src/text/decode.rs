//! From bytes to UTF-8: compression, byte order marks, and what is no text at all.

use std::{
    cell::RefCell,
    io::{self, BufRead, BufReader, Cursor, Read},
    path::Path,
    rc::Rc,
};

use qqq_formats::{FormatError, input::Watched};
use sha2::{Digest, Sha256};

use super::{TextError, table::TableKind};
use crate::{ModelError, Result};

/// Bytes of a file's beginning that are looked at.
const HEAD: u64 = 64 << 10;
/// Blanks that a text may begin with.
const MAX_BLANKS: usize = 64 << 20;

/// What a file holds.
pub(super) enum Content {
    Table(TableKind),
    /// `reader` gives all of it, `head` is its beginning; a byte order mark is taken away. What was UTF-16 is UTF-8,
    /// other bytes are not checked.
    Text {
        head: Vec<u8>,
        reader: Box<dyn BufRead>,
    },
}

/// First bytes of files with columns.
const TABLES: [(&[u8], TableKind); 3] = [
    (b"PAR1", TableKind::Parquet),
    (b"ARROW1", TableKind::ArrowFile),
    (b"\xFF\xFF\xFF\xFF", TableKind::ArrowStream),
];

/// First bytes of what is neither text nor can be unpacked here.
const FOREIGN: [(&[u8], &str); 8] = [
    (b"PK\x03\x04", "a zip archive: unpack it, and name the file in it"),
    (b"\xFD7zXZ\0", "compressed by xz: unpack it (gzip and Zstandard are understood)"),
    (b"BZh", "compressed by bzip2: unpack it (gzip and Zstandard are understood)"),
    (b"7z\xBC\xAF\x27\x1C", "a 7z archive: unpack it, and name the file in it"),
    (b"%PDF-", "a PDF document: extract its text"),
    (b"GGUF", "a GGUF model"),
    (b"\xFF\xFE\0\0", "UTF-32: convert it, for instance with iconv -t utf-8"),
    (b"\0\0\xFE\xFF", "UTF-32: convert it, for instance with iconv -t utf-8"),
];

/// Where bytes come from.
enum Source {
    File(Box<Watched>),
    /// What can be read once, from its beginning to its end.
    Stream(Box<dyn Read>),
}

/// Bytes as they come from a file or a stream, which are hashed as they are read.
#[derive(Clone)]
pub(super) struct Original(Rc<RefCell<Hashed>>);

struct Hashed {
    source: Source,
    hash: Sha256,
}

impl Original {
    pub fn file(path: &Path) -> Result<Self> {
        let file = Watched::open(path).map_err(|e| read_error(path, e))?;
        Ok(Self::new(Source::File(Box::new(file))))
    }

    pub fn stream(stream: Box<dyn Read>) -> Self {
        Self::new(Source::Stream(stream))
    }

    fn new(source: Source) -> Self {
        Self(Rc::new(RefCell::new(Hashed { source, hash: Sha256::new() })))
    }

    pub fn is_stream(&self) -> bool {
        matches!(self.0.borrow().source, Source::Stream(_))
    }

    /// SHA-256 of the file in hexadecimal, for which it is read to its end; `None` of what has no end to count on, a pipe
    /// say.
    pub fn sha256(&mut self) -> io::Result<Option<String>> {
        let is_regular = match &self.0.borrow().source {
            Source::File(file) => file.is_regular(),
            Source::Stream(_) => false,
        };
        if !is_regular {
            return Ok(None);
        }
        io::copy(self, &mut io::sink())?;
        let hash = self.0.borrow().hash.clone().finalize();
        Ok(Some(hash.iter().map(|b| format!("{b:02x}")).collect()))
    }
}

impl Read for Original {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Hashed { source, hash } = &mut *self.0.borrow_mut();
        let read = match source {
            Source::File(file) => file.read(buffer)?,
            Source::Stream(stream) => stream.read(buffer)?,
        };
        hash.update(&buffer[..read]);
        Ok(read)
    }
}

/// Finds out what there is; `path` names it in errors.
pub(super) fn content(path: &Path, original: Original) -> Result<Content> {
    let mut reader: Box<dyn Read> = Box::new(original);
    let mut packed = None;
    let mut head = peek(path, &mut reader)?;
    if head.starts_with(b"\x1F\x8B") {
        let inner = BufReader::new(Cursor::new(head).chain(reader));
        reader = Box::new(Damaged { inner: flate2::bufread::MultiGzDecoder::new(inner), what: "gzip" });
        packed = Some("gzip");
    } else if head.starts_with(b"\x28\xB5\x2F\xFD") {
        let inner = BufReader::new(Cursor::new(head).chain(reader));
        let decoder = zstd::stream::read::Decoder::with_buffer(inner).map_err(|e| read_error(path, e))?;
        reader = Box::new(Damaged { inner: decoder, what: "Zstandard" });
        packed = Some("Zstandard");
    } else {
        return decoded(path, head, reader, packed);
    }
    head = peek(path, &mut reader)?;
    decoded(path, head, reader, packed)
}

/// What comes after compression.
fn decoded(
    path: &Path,
    mut head: Vec<u8>,
    mut reader: Box<dyn Read>,
    packed: Option<&str>,
) -> Result<Content> {
    let refuse = |what: &str| Err(TextError::file(path, format!("it is no text, but {what}")).into());
    if let Some((_, kind)) = TABLES.iter().find(|(magic, _)| head.starts_with(magic)) {
        return match packed {
            Some(packed) => {
                refuse(&format!("{} compressed by {packed} as a whole: unpack it", kind.a_file()))
            }
            None => Ok(Content::Table(*kind)),
        };
    }
    if packed.is_some() && (head.starts_with(b"\x1F\x8B") || head.starts_with(b"\x28\xB5\x2F\xFD")) {
        return refuse("compressed twice: unpack it");
    }
    // A tar archive names itself at byte 257.
    if head.get(257..262) == Some(b"ustar") {
        return refuse("a tar archive: unpack it, and name the file in it");
    }
    if let Some((_, what)) = FOREIGN.iter().find(|(magic, _)| head.starts_with(magic)) {
        return refuse(what);
    }
    if head.starts_with(b"\xEF\xBB\xBF") {
        head.drain(..3);
    } else if head.starts_with(b"\xFF\xFE") || head.starts_with(b"\xFE\xFF") {
        let big = head.starts_with(b"\xFE\xFF");
        head.drain(..2);
        reader = Box::new(Utf16::new(Cursor::new(head).chain(reader), big));
        head = peek(path, &mut reader)?;
    } else if head.iter().filter(|b| **b == 0).count() * 8 > head.len() {
        return refuse(
            "binary data, or UTF-16 without a byte order mark: convert it, for instance with iconv -t utf-8",
        );
    }
    past_blanks(path, &mut head, &mut reader)?;
    let all = Cursor::new(head.clone()).chain(reader);
    Ok(Content::Text { head, reader: Box::new(BufReader::with_capacity(HEAD as usize, all)) })
}

/// Reads on where a text begins with blanks: what it is shows behind them.
fn past_blanks(path: &Path, head: &mut Vec<u8>, reader: &mut dyn Read) -> Result<()> {
    let leading = |bytes: &[u8]| bytes.len() - bytes.trim_ascii_start().len();
    let mut blanks = leading(head);
    // A shorter head is all there is.
    while head.len() >= HEAD as usize && head.len() - blanks < HEAD as usize / 2 {
        if blanks > MAX_BLANKS {
            return Err(TextError::file(path, format!("it begins with more than {MAX_BLANKS} blanks")).into());
        }
        let more = peek(path, reader)?;
        if more.is_empty() {
            break;
        }
        if blanks == head.len() {
            blanks += leading(&more);
        }
        head.extend(more);
    }
    Ok(())
}

fn peek(path: &Path, reader: &mut dyn Read) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    reader.take(HEAD).read_to_end(&mut head).map_err(|e| read_error(path, e))?;
    Ok(head)
}

/// An error of reading: content that is damaged, or the operating system's.
pub(super) fn read_error(path: &Path, e: io::Error) -> ModelError {
    let e = match e.downcast::<FormatError>() {
        Ok(changed) => return changed.into(),
        Err(e) => e,
    };
    match e.kind() {
        io::ErrorKind::InvalidData => TextError::file(path, e.to_string()).into(),
        _ => FormatError::Io { path: path.to_owned(), source: e }.into(),
    }
}

/// A decoder whose errors are those of its input.
struct Damaged<R> {
    inner: R,
    what: &'static str,
}

impl<R: Read> Read for Damaged<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|e| match e.kind() {
            io::ErrorKind::Interrupted => e,
            _ => io::Error::new(
                io::ErrorKind::InvalidData,
                format!("its {} data are damaged or cut off: {e}", self.what),
            ),
        })
    }
}

/// UTF-8 of UTF-16.
struct Utf16<R> {
    inner: R,
    big: bool,
    /// A byte whose unit is not complete.
    odd: Option<u8>,
    /// The first unit of a pair whose second is not there yet.
    high: Option<u16>,
    out: Cursor<Vec<u8>>,
    /// Lines until now.
    line: usize,
}

impl<R: Read> Utf16<R> {
    fn new(inner: R, big: bool) -> Self {
        Self { inner, big, odd: None, high: None, out: Cursor::default(), line: 1 }
    }

    /// Decodes the next bytes; `false` at the end.
    fn fill(&mut self) -> io::Result<bool> {
        let mut bytes = Vec::with_capacity(8 << 10);
        bytes.extend(self.odd.take());
        let read = (&mut self.inner).take(8 << 10).read_to_end(&mut bytes)?;
        let invalid = |line: usize, what: &str| {
            io::Error::new(io::ErrorKind::InvalidData, format!("line {line} is not UTF-16: {what}"))
        };
        if read == 0 {
            return match (bytes.is_empty(), self.high) {
                (true, None) => Ok(false),
                _ => Err(invalid(self.line, "the file ends within a character")),
            };
        }
        let mut units: Vec<u16> = self.high.take().into_iter().collect();
        let pairs = bytes.chunks_exact(2);
        self.odd = pairs.remainder().first().copied();
        units.extend(pairs.map(|p| match self.big {
            true => u16::from_be_bytes([p[0], p[1]]),
            false => u16::from_le_bytes([p[0], p[1]]),
        }));
        if units.last().is_some_and(|u| (0xD800..0xDC00).contains(u)) {
            self.high = units.pop();
        }
        let mut text = String::with_capacity(units.len());
        for c in char::decode_utf16(units) {
            let c = c.map_err(|_| invalid(self.line, "half of a surrogate pair"))?;
            self.line += usize::from(c == '\n');
            text.push(c);
        }
        self.out = Cursor::new(text.into_bytes());
        Ok(true)
    }
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let n = self.out.read(buffer)?;
            if n > 0 || !self.fill()? {
                return Ok(n);
            }
        }
    }
}
