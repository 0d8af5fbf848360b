//! Tensors of which one goes by another name.

use std::borrow::Cow;

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

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        self.source.bytes(self.stored(name))
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<WeightData> {
        self.source.float(self.stored(name), shape)
    }

    fn location(&self) -> String {
        self.source.location()
    }

    fn release(&self, name: &str) {
        self.source.release(self.stored(name));
    }
}
