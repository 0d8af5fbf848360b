//! Tensors of which one goes by another name.

use std::{borrow::Cow, ops::Range};

use crate::{Result, TensorInfo, TensorSource, WeightData};

/// A source without a tensor `name`, whose tensor `stored` is called that.
pub(crate) struct Renamed {
    pub source: Box<dyn TensorSource>,
    pub stored: &'static str,
    pub name: &'static str,
}

impl Renamed {
    /// The name in the source; for the name that is hidden, one that the source does not have.
    fn stored<'a>(&self, name: &'a str) -> &'a str {
        match name {
            name if name == self.name => self.stored,
            name if name == self.stored => self.name,
            name => name,
        }
    }
}

impl TensorSource for Renamed {
    fn names(&self) -> Vec<String> {
        let mut names = self.source.names();
        for name in &mut names {
            if name == self.stored {
                self.name.clone_into(name);
            }
        }
        names.sort();
        names
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.source.info(self.stored(name))
    }

    fn bytes_at(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>> {
        self.source.bytes_at(self.stored(name), range)
    }

    fn read_into(&self, name: &str, offset: usize, out: &mut [u8]) -> Result<()> {
        self.source.read_into(self.stored(name), offset, out)
    }

    fn float_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<WeightData> {
        self.source.float_rows(self.stored(name), shape, rows)
    }

    fn location(&self) -> String {
        self.source.location()
    }
}
