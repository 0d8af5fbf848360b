//! Some tensors of a source, under other names.

use std::{borrow::Cow, collections::BTreeMap, ops::Range};

use crate::{FormatError, Result, TensorInfo, TensorSource, WeightData};

/// A source of which only some tensors are shown, each under a name of its own.
pub(crate) struct Renamed {
    pub source: Box<dyn TensorSource>,
    /// Names, and those that the source has for them.
    pub stored: BTreeMap<String, String>,
}

impl Renamed {
    fn stored(&self, name: &str) -> Result<&str> {
        self.stored
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| FormatError::MissingTensor { location: self.location(), name: name.into() })
    }
}

impl TensorSource for Renamed {
    fn names(&self) -> Vec<String> {
        self.stored.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.source.info(self.stored.get(name)?)
    }

    fn bytes_at(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>> {
        self.source.bytes_at(self.stored(name)?, range)
    }

    fn read_into(&self, name: &str, offset: usize, out: &mut [u8]) -> Result<()> {
        self.source.read_into(self.stored(name)?, offset, out)
    }

    fn float_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<WeightData> {
        self.source.float_rows(self.stored(name)?, shape, rows)
    }

    fn location(&self) -> String {
        self.source.location()
    }
}
