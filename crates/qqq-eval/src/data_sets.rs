//! Data sets on which perplexities of papers are measured, by the names that these call them.
//!
//! What is scored of each is what GPTQ's code scores (`get_wikitext2`, `get_ptb_new` and `get_c4_new` in
//! <https://github.com/IST-DASLab/gptq/blob/main/datautils.py>), which most papers since have taken over: the records are joined
//! to one text, that is tokenized as a whole, special tokens that the tokenizer adds at its beginning included, and cut into
//! windows of 2,048 tokens that do not overlap; what is left is not scored.

/// A data set, and what of it counts.
#[derive(Debug, PartialEq, Eq)]
pub struct DataSet {
    /// As papers call it.
    pub name: &'static str,
    /// The split on the hub, as [`dataset_files`](qqq_model::hub::dataset_files) takes it.
    pub hub: &'static str,
    /// Its branch there.
    pub revision: &'static str,
    /// Field of a record that holds its text.
    pub field: &'static str,
    /// What stands between two records.
    pub separator: &'static str,
    /// Records that are taken, from the first one on.
    pub records: usize,
    /// Windows that are scored, from the first one on.
    pub windows: Option<usize>,
}

/// All that are known.
pub static DATA_SETS: [DataSet; 3] = [
    DataSet {
        name: "wikitext2",
        hub: "Salesforce/wikitext:wikitext-2-raw-v1/test",
        revision: "main",
        field: "text",
        separator: "\n\n",
        records: usize::MAX,
        windows: None,
    },
    // The first of eight files of the validation split.
    DataSet {
        name: "c4",
        hub: "allenai/c4:en/validation",
        revision: "main",
        field: "text",
        separator: " ",
        records: 1100,
        windows: Some(256),
    },
    // On the main branch is a script that makes it, on this one what it makes.
    DataSet {
        name: "ptb",
        hub: "ptb-text-only/ptb_text_only:penn_treebank/test",
        revision: "refs/convert/parquet",
        field: "sentence",
        separator: " ",
        records: usize::MAX,
        windows: None,
    },
];
