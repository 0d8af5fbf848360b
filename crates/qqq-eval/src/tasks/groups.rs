//! Groups of tasks: one figure for all of them, as lm-evaluation-harness 0.4.13 makes it.

use serde::Serialize;

use super::{TASKS, Task, TaskReport};
use crate::Estimate;

/// Tasks that are also counted together.
#[derive(Debug)]
pub struct Group {
    /// Its name in lm-evaluation-harness.
    pub name: &'static str,
    /// What the names of its tasks' groups begin with.
    members: &'static str,
}

/// All of them; a group comes behind those that it consists of.
pub static GROUPS: [Group; 5] = [
    Group { name: "mmlu_stem", members: "mmlu_stem" },
    Group { name: "mmlu_other", members: "mmlu_other" },
    Group { name: "mmlu_social_sciences", members: "mmlu_social_sciences" },
    Group { name: "mmlu_humanities", members: "mmlu_humanities" },
    Group { name: "mmlu", members: "mmlu_" },
];

/// The figure of a group: the mean over the documents of all its tasks.
#[derive(Clone, Debug, Serialize)]
pub struct GroupReport {
    /// Name of the group.
    pub group: &'static str,
    /// Share of documents whose likeliest choice is right. The standard error is made of those of the tasks, by the pooled
    /// variance of their documents.
    pub acc: Estimate,
    /// Tasks of the group.
    pub tasks: usize,
    /// Documents of these.
    pub documents: usize,
}

impl Group {
    /// The group of a name.
    pub fn named(name: &str) -> Option<&'static Self> {
        GROUPS.iter().find(|group| group.name == name)
    }

    /// Its tasks.
    pub fn tasks(&self) -> Vec<&'static Task> {
        TASKS.iter().filter(|task| self.holds(task)).collect()
    }

    /// Whether a task belongs to it.
    pub fn holds(&self, task: &Task) -> bool {
        task.group.is_some_and(|group| group.starts_with(self.members))
    }

    /// Its figure, if all its tasks were scored.
    pub fn report<'r>(&self, reports: impl IntoIterator<Item = &'r TaskReport>) -> Option<GroupReport> {
        let is_member = |report: &&TaskReport| Task::named(report.task).is_some_and(|task| self.holds(task));
        let members: Vec<&TaskReport> = reports.into_iter().filter(is_member).collect();
        (members.len() == self.tasks().len()).then(|| GroupReport {
            group: self.name,
            acc: pooled(&members.iter().map(|one| (one.acc, one.documents)).collect::<Vec<_>>()),
            tasks: members.len(),
            documents: members.iter().map(|one| one.documents).sum(),
        })
    }
}

/// The mean over all documents of several tasks, whose means and numbers of documents are given. Its standard error is that of
/// their pooled variance; there is none where one of the tasks has none.
pub fn pooled(tasks: &[(Estimate, usize)]) -> Estimate {
    let all: usize = tasks.iter().map(|(_, n)| n).sum();
    let total = all as f64;
    let mean = tasks.iter().map(|(one, n)| one.mean * *n as f64).sum::<f64>() / total;
    let squares: Option<f64> =
        tasks.iter().map(|(one, n)| Some((*n as f64 - 1.0) * one.standard_error?.powi(2) * *n as f64)).sum();
    let standard_error = squares.map(|squares| (squares / (total - tasks.len() as f64) / total).sqrt());
    Estimate { mean, standard_error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_their_subjects() {
        let sizes: Vec<usize> = GROUPS.iter().map(|group| group.tasks().len()).collect();
        assert_eq!(sizes, [19, 13, 12, 13, 57]);
    }

    #[test]
    fn larger_tasks_weigh_more() {
        let one = |mean, error| Estimate { mean, standard_error: error };
        let found = pooled(&[(one(0.5, Some(0.25)), 4), (one(1.0, Some(0.0)), 12)]);
        assert_eq!(found.mean, 0.875);
        // Variance of a document 4 * 0.25^2 = 0.25 with 3 degrees of freedom, and 0 with 11.
        let expected = (3.0 * 0.25 / 14.0 / 16.0f64).sqrt();
        assert!((found.standard_error.unwrap() - expected).abs() < 1e-15);
        assert_eq!(pooled(&[(one(0.5, Some(0.25)), 4), (one(1.0, None), 1)]).standard_error, None);
    }
}
