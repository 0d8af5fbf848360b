//! Rows of a parquet file, as records.

use std::path::Path;

use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, reader::RowIter},
    schema::types::Type,
};
use qqq_formats::InputFile;
use serde_json::{Map, Number, Value};

use super::{Place, TextError, TextProblem, record::Records};
use crate::Result;

pub(super) struct Rows {
    rows: RowIter<'static>,
    file: InputFile,
    /// Rows until now.
    count: usize,
}

impl Rows {
    /// Opens a file for the columns that the records need; without records for all of them.
    pub fn open(path: &Path, file: InputFile, records: Option<&mut Records<'_>>) -> Result<Self> {
        let damaged = |e: parquet::errors::ParquetError| {
            TextError::file(path, format!("it cannot be read as parquet: {e}"))
        };
        let reader = SerializedFileReader::new(file.handle()?).map_err(damaged)?;
        let Some(records) = records else {
            return Ok(Self { rows: RowIter::from_file_into(Box::new(reader)), file, count: 0 });
        };
        let schema = reader.metadata().file_metadata().schema();
        let fields = schema.get_fields();
        let names: Vec<&str> = fields.iter().map(|f| f.name()).collect();
        let holds = |name: &str, list: bool| fields.iter().any(|f| f.name() == name && f.is_group() == list);
        let wanted = records.columns(&names, &holds).map_err(|(problem, reason)| TextError {
            path: path.to_owned(),
            place: Place::File,
            problem,
            reason,
        })?;
        let columns = fields.iter().filter(|f| wanted.iter().any(|w| w == f.name())).cloned().collect();
        let projection =
            Type::group_type_builder(schema.name()).with_fields(columns).build().map_err(damaged)?;
        let rows = RowIter::from_file_into(Box::new(reader)).project(Some(projection)).map_err(damaged)?;
        Ok(Self { rows, file, count: 0 })
    }

    /// The next row, with its number from 1.
    pub fn next_row(&mut self, path: &Path) -> Result<Option<(usize, Value)>> {
        let row = self.rows.next();
        // Before what was read is used, or blamed.
        self.file.check()?;
        let Some(row) = row else { return Ok(None) };
        self.count += 1;
        let at = |problem, reason| TextError {
            path: path.to_owned(),
            place: Place::Row(self.count),
            problem,
            reason,
        };
        let row = row.map_err(|e| at(TextProblem::Content, e.to_string()))?;
        let record = object(row.into_columns()).map_err(|reason| at(TextProblem::Field, reason))?;
        Ok(Some((self.count, record)))
    }
}

fn object(columns: Vec<(String, Field)>) -> Result<Value, String> {
    let entries = columns.into_iter().map(|(name, field)| match value(field) {
        Ok(value) => Ok((name, value)),
        Err(reason) => Err(format!("{name:?}: {reason}")),
    });
    Ok(Value::Object(entries.collect::<Result<Map<_, _>, _>>()?))
}

fn value(field: Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(b) => b.into(),
        Field::Byte(n) => n.into(),
        Field::Short(n) => n.into(),
        Field::Int(n) => n.into(),
        Field::Long(n) => n.into(),
        Field::UByte(n) => n.into(),
        Field::UShort(n) => n.into(),
        Field::UInt(n) => n.into(),
        Field::ULong(n) => n.into(),
        Field::Float(x) => Number::from_f64(x.into()).map_or(Value::Null, Value::Number),
        Field::Double(x) => Number::from_f64(x).map_or(Value::Null, Value::Number),
        Field::Str(text) => text.into(),
        // Some writers do not say that a column holds text.
        Field::Bytes(bytes) => match bytes.as_utf8() {
            Ok(text) => text.into(),
            Err(_) => return Err("it is not UTF-8 text".into()),
        },
        Field::Group(row) => object(row.into_columns())?,
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().cloned().map(value).collect::<Result<_, _>>()?)
        }
        Field::MapInternal(map) => {
            let entry = |(key, field): &(Field, Field)| Ok((key.to_string(), value(field.clone())?));
            Value::Object(map.entries().iter().map(entry).collect::<Result<Map<_, _>, String>>()?)
        }
        other => other.to_string().into(),
    })
}
