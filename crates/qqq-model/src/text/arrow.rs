//! Arrow files and streams, as records. The `datasets` library keeps what it has read as streams, in files called `.arrow`.

use std::{collections::VecDeque, fs::File, io::BufReader};

use arrow_array::RecordBatch;
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_json::{WriterBuilder, writer::JsonArray};
use arrow_schema::{ArrowError, DataType, SchemaRef};
use serde_json::Value;

use super::{
    TextProblem,
    record::Problem,
    table::{Column, Table, Values},
};

/// Rows that are brought to JSON at a time; a batch may have all rows of a file.
const ROWS: usize = 1000;

/// A file whose schema was read.
pub(super) struct Arrow {
    schema: SchemaRef,
    batches: Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>,
}

impl Arrow {
    /// Opens a file that is to be read from its beginning: a stream, or the file format with its index at the end.
    pub fn open(file: File, is_stream: bool) -> Result<Self, String> {
        let says = |e: ArrowError| e.to_string();
        let file = BufReader::new(file);
        Ok(if is_stream {
            let reader = StreamReader::try_new(file, None).map_err(says)?;
            Self { schema: reader.schema(), batches: Box::new(reader) }
        } else {
            let reader = FileReader::try_new(file, None).map_err(says)?;
            Self { schema: reader.schema(), batches: Box::new(reader) }
        })
    }
}

impl Table for Arrow {
    fn columns(&self) -> Vec<Column> {
        let column = |field: &arrow_schema::FieldRef| Column {
            name: field.name().clone(),
            is_nested: field.data_type().is_nested(),
        };
        self.schema.fields().iter().map(column).collect()
    }

    fn rows(self: Box<Self>, wanted: Option<&[String]>) -> Result<Values, Problem> {
        let fields = self.schema.fields().iter().enumerate();
        let taken = fields.filter(|(_, field)| wanted.is_none_or(|names| names.contains(field.name())));
        let mut columns = Vec::new();
        for (i, field) in taken {
            if is_binary(field.data_type()) {
                // They would become hexadecimal digits. Whoever takes all columns needs none of them.
                match wanted {
                    Some(_) => {
                        return Err((
                            TextProblem::Field,
                            format!("the column {:?} holds bytes, no text", field.name()),
                        ));
                    }
                    None => continue,
                }
            }
            columns.push(i);
        }
        Ok(Box::new(Rows { batches: self.batches, columns, batch: None, ready: VecDeque::new() }))
    }
}

fn is_binary(kind: &DataType) -> bool {
    matches!(
        kind,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_)
    )
}

struct Rows {
    batches: Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>,
    columns: Vec<usize>,
    /// Rows that are still to be brought to JSON.
    batch: Option<RecordBatch>,
    ready: VecDeque<Value>,
}

impl Rows {
    /// Makes rows ready; `false` at the end.
    fn fill(&mut self) -> Result<bool, ArrowError> {
        while self.ready.is_empty() {
            let batch = match self.batch.take() {
                Some(batch) => batch,
                None => match self.batches.next().transpose()? {
                    Some(batch) => batch.project(&self.columns)?,
                    None => return Ok(false),
                },
            };
            let rows = batch.num_rows().min(ROWS);
            self.ready = values(&batch.slice(0, rows))?;
            if rows < batch.num_rows() {
                self.batch = Some(batch.slice(rows, batch.num_rows() - rows));
            }
        }
        Ok(true)
    }
}

impl Iterator for Rows {
    type Item = Result<Value, Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.fill() {
            Ok(true) => self.ready.pop_front().map(Ok),
            Ok(false) => None,
            Err(e) => Some(Err((TextProblem::Content, e.to_string()))),
        }
    }
}

fn values(batch: &RecordBatch) -> Result<VecDeque<Value>, ArrowError> {
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    let json = writer.into_inner();
    serde_json::from_slice(&json).map_err(|e| ArrowError::JsonError(e.to_string()))
}
