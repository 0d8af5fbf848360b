//! Columns of tasks: one each, and one for all tasks of a group that was asked for as a whole.

use qqq_eval::tasks::{GROUPS, Task, pooled};

use super::measure::{Answers, Found, OnTask};
use crate::commands::eval::{HashedFile, TaskFile};

/// A column.
pub struct Column {
    /// Name of its task, or of its group.
    pub name: &'static str,
    /// Its tasks, by index; they stand one after the other.
    tasks: Vec<usize>,
    /// Files of its questions, each once.
    pub files: Vec<HashedFile>,
}

impl Column {
    /// Those of the tasks that were asked.
    pub fn all(tasks: &[TaskFile]) -> Vec<Self> {
        let asked: Vec<&Task> = tasks.iter().map(|one| one.documents.task).collect();
        let mut columns: Vec<Self> = Vec::new();
        for (index, (task, one)) in asked.iter().zip(tasks).enumerate() {
            let name = name_of(task, &asked);
            let place = columns.iter().position(|column| column.name == name).unwrap_or_else(|| {
                columns.push(Self { name, tasks: Vec::new(), files: Vec::new() });
                columns.len() - 1
            });
            let column = &mut columns[place];
            column.tasks.push(index);
            let is_new = |file: &&HashedFile| !column.files.contains(file);
            let fresh: Vec<HashedFile> = one.files.iter().filter(is_new).cloned().collect();
            column.files.extend(fresh);
        }
        columns
    }

    /// What was found in its tasks; `None` if nothing was. A group of which something is missing is partial.
    pub fn of(&self, found: &[Found<Answers>]) -> Option<Found<Answers>> {
        let own: Vec<&Found<Answers>> = self.tasks.iter().filter_map(|&index| found.get(index)).collect();
        if let ([_], [one]) = (&self.tasks[..], &own[..]) {
            return Some((*one).clone());
        }
        if let Some(broken) = own.iter().find(|one| one.measured().is_none()) {
            return Some((*broken).clone());
        }
        let own: Vec<&Answers> = own.into_iter().filter_map(Found::measured).collect();
        (!own.is_empty()).then(|| Found::Measured(self.joined(&own)))
    }

    fn joined(&self, own: &[&Answers]) -> Answers {
        let on = own.iter().map(|answers| &answers.on);
        Answers {
            on: OnTask {
                acc: pooled(&on.clone().map(|on| (on.acc, on.documents)).collect::<Vec<_>>()),
                acc_norm: None,
                documents: on.clone().map(|on| on.documents).sum(),
                partial: own.len() < self.tasks.len() || on.clone().any(|on| on.partial),
                seconds: on.map(|on| on.seconds).sum(),
            },
            right: own.iter().map(|answers| answers.right.as_str()).collect(),
        }
    }
}

/// The largest group that was asked for as a whole, else the task itself.
fn name_of(task: &Task, asked: &[&Task]) -> &'static str {
    let is_whole = |tasks: &[&Task]| tasks.iter().all(|one| asked.iter().any(|other| other.name == one.name));
    let groups = GROUPS.iter().filter(|group| group.holds(task) && is_whole(&group.tasks()));
    groups.max_by_key(|group| group.tasks().len()).map_or(task.name, |group| group.name)
}

#[cfg(test)]
mod tests {
    use qqq_eval::Estimate;

    use super::*;

    #[test]
    fn subjects_stand_under_the_largest_group_that_is_whole() {
        let subjects: Vec<&Task> = GROUPS.iter().find(|group| group.name == "mmlu").unwrap().tasks();
        let piqa = Task::named("piqa").unwrap();
        let anatomy = Task::named("mmlu_anatomy").unwrap();
        let all: Vec<&Task> = [&[piqa], &subjects[..]].concat();
        assert_eq!(name_of(anatomy, &all), "mmlu");
        assert_eq!(name_of(piqa, &all), "piqa");
        let but_one: Vec<&Task> = all.iter().copied().filter(|task| task.name != "mmlu_virology").collect();
        assert_eq!(name_of(anatomy, &but_one), "mmlu_stem");
        assert_eq!(name_of(anatomy, &[anatomy]), "mmlu_anatomy");
    }

    #[test]
    fn a_group_counts_all_its_questions() {
        let answers = |acc: f64, right: &str| {
            Found::Measured(Answers {
                on: OnTask {
                    acc: Estimate { mean: acc, standard_error: Some(0.25) },
                    acc_norm: Some(Estimate { mean: acc, standard_error: None }),
                    documents: right.len(),
                    partial: false,
                    seconds: 1.0,
                },
                right: right.into(),
            })
        };
        let column = Column { name: "g", tasks: vec![1, 2], files: Vec::new() };
        let found = [answers(0.0, "00"), answers(0.5, "10"), answers(1.0, "111111")];
        let joined = column.of(&found).unwrap();
        let joined = joined.measured().unwrap();
        assert_eq!((joined.on.acc.mean, joined.right.as_str()), (0.875, "10111111"));
        assert_eq!((joined.on.documents, joined.on.partial, joined.on.seconds), (8, false, 2.0));
        assert!(column.of(&found[..2]).unwrap().measured().unwrap().on.partial);
        assert!(column.of(&found[..1]).is_none());
        let broken = [found[0].clone(), found[1].clone(), Found::NotFinite { not_finite: "NaN".into() }];
        assert!(column.of(&broken).unwrap().measured().is_none());
        // A task of its own keeps what a group has not.
        let alone = Column { name: "t", tasks: vec![1], files: Vec::new() };
        assert!(alone.of(&found).unwrap().measured().unwrap().on.acc_norm.is_some());
    }
}
