//! Rows of a parquet file, as records.

use std::fs::File;

use parquet::{
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, reader::RowIter},
    schema::types::Type,
};
use serde_json::{Map, Number, Value};

use super::{
    TextProblem,
    record::Problem,
    table::{Column, Table, Values},
};

/// A file whose schema was read.
pub(super) struct Parquet(SerializedFileReader<File>);

impl Parquet {
    pub fn open(file: File) -> Result<Self, String> {
        SerializedFileReader::new(file).map(Self).map_err(|e| e.to_string())
    }

    fn schema(&self) -> &Type {
        self.0.metadata().file_metadata().schema()
    }
}

impl Table for Parquet {
    fn columns(&self) -> Vec<Column> {
        let fields = self.schema().get_fields().iter();
        fields.map(|f| Column { name: f.name().to_owned(), is_nested: f.is_group() }).collect()
    }

    fn rows(self: Box<Self>, wanted: Option<&[String]>) -> Result<Values, Problem> {
        let damaged = |e: ParquetError| (TextProblem::Content, e.to_string());
        let projection = wanted.map(|wanted| {
            let fields = self.schema().get_fields().iter();
            let columns = fields.filter(|f| wanted.iter().any(|w| w == f.name())).cloned().collect();
            Type::group_type_builder(self.schema().name()).with_fields(columns).build()
        });
        let projection = projection.transpose().map_err(damaged)?;
        let rows = RowIter::from_file_into(Box::new(self.0));
        let rows = if projection.is_some() { rows.project(projection).map_err(damaged)? } else { rows };
        Ok(Box::new(rows.map(|row| {
            let row = row.map_err(|e| (TextProblem::Content, e.to_string()))?;
            object(row.into_columns()).map_err(|reason| (TextProblem::Field, reason))
        })))
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
