//! MMLU: 57 subjects, a task each, and their groups.

use super::definitions::{Answer, Choices, DataSet, Form, Metric, ShotChoice, Shots, Task};

/// The names with the prefix of their tasks.
macro_rules! subjects {
    ($($subject:literal),* $(,)?) => { &[$((concat!("mmlu_", $subject), $subject)),*] };
}
/// The name of a subject's task, and the subject; the groups are those of the harness.
const SUBJECTS: [(&str, &[(&str, &str)]); 4] = [
    (
        "mmlu_stem",
        subjects![
            "abstract_algebra",
            "anatomy",
            "astronomy",
            "college_biology",
            "college_chemistry",
            "college_computer_science",
            "college_mathematics",
            "college_physics",
            "computer_security",
            "conceptual_physics",
            "electrical_engineering",
            "elementary_mathematics",
            "high_school_biology",
            "high_school_chemistry",
            "high_school_computer_science",
            "high_school_mathematics",
            "high_school_physics",
            "high_school_statistics",
            "machine_learning",
        ],
    ),
    (
        "mmlu_other",
        subjects![
            "business_ethics",
            "clinical_knowledge",
            "college_medicine",
            "global_facts",
            "human_aging",
            "management",
            "marketing",
            "medical_genetics",
            "miscellaneous",
            "nutrition",
            "professional_accounting",
            "professional_medicine",
            "virology",
        ],
    ),
    (
        "mmlu_social_sciences",
        subjects![
            "econometrics",
            "high_school_geography",
            "high_school_government_and_politics",
            "high_school_macroeconomics",
            "high_school_microeconomics",
            "high_school_psychology",
            "human_sexuality",
            "professional_psychology",
            "public_relations",
            "security_studies",
            "sociology",
            "us_foreign_policy",
        ],
    ),
    (
        "mmlu_humanities",
        subjects![
            "formal_logic",
            "high_school_european_history",
            "high_school_us_history",
            "high_school_world_history",
            "international_law",
            "jurisprudence",
            "logical_fallacies",
            "moral_disputes",
            "moral_scenarios",
            "philosophy",
            "prehistory",
            "professional_law",
            "world_religions",
        ],
    ),
];

/// Their tasks, group after group.
pub(super) fn mmlu() -> impl Iterator<Item = Task> {
    SUBJECTS.into_iter().flat_map(|(group, subjects)| {
        subjects.iter().map(move |&(name, subject)| Task {
            name,
            data_set: DataSet { repo: "cais/mmlu", config: Some(subject) },
            file: name,
            split: "test",
            shots: Shots { split: "dev", choice: ShotChoice::First },
            metrics: &[Metric::Acc],
            subject: Some(subject),
            group: Some(group),
            description: "The following are multiple choice questions (with answers) about {subject}.\n\n",
            form: Form::Choices {
                prompt: "{question|strip}\nA. {choices.0}\nB. {choices.1}\nC. {choices.2}\nD. {choices.3}\nAnswer:",
                choices: Choices::Fixed(&["A", "B", "C", "D"]),
                answer: Answer::Number("answer"),
                clean: false,
            },
        })
    })
}
