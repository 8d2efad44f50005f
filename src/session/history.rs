//! The tree of turns, and the current position in it.

use image::RgbImage;
use kontext_core::{Error, Result};

use super::Turn;

/// All turns, and the current one.
#[derive(Debug)]
pub(crate) struct History {
    /// By their numbers; a turn comes after its parent.
    turns: Vec<Turn>,
    /// For each turn, the child visited last.
    next: Vec<Option<usize>>,
    current: usize,
}

impl History {
    pub(crate) fn new(image: RgbImage) -> Self {
        Self {
            turns: vec![Turn::given(0, image)],
            next: vec![None],
            current: 0,
        }
    }

    /// Restores a history; `None` if it is invalid: a turn may only edit an earlier one, and `next` must name
    /// a child.
    pub(crate) fn of(turns: Vec<Turn>, next: Vec<Option<usize>>, current: usize) -> Option<Self> {
        let parents = turns.iter().enumerate().all(|(id, turn)| match turn.parent {
            Some(parent) => parent < id,
            None => id == 0,
        });
        let parent = |id: usize| turns.get(id).and_then(|turn: &Turn| turn.parent);
        let followed = next
            .iter()
            .enumerate()
            .all(|(id, next)| next.is_none_or(|next| parent(next) == Some(id)));
        let whole = parents && followed && next.len() == turns.len() && current < turns.len();
        whole.then_some(Self { turns, next, current })
    }

    pub(crate) fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// Returns the turn that [`History::redo`] moves to from each.
    pub(crate) fn next(&self) -> &[Option<usize>] {
        &self.next
    }

    pub(crate) fn current(&self) -> &Turn {
        &self.turns[self.current]
    }

    /// Adds the turn that `make` creates from its number and its parent's.
    pub(crate) fn add(&mut self, make: impl FnOnce(usize, usize) -> Turn) -> &Turn {
        let id = self.turns.len();
        self.turns.push(make(id, self.current));
        self.next.push(None);
        self.next[self.current] = Some(id);
        self.current = id;
        self.current()
    }

    pub(crate) fn undo(&mut self) -> bool {
        let parent = self.current().parent;
        self.current = parent.unwrap_or(self.current);
        parent.is_some()
    }

    pub(crate) fn redo(&mut self) -> bool {
        let next = self.next[self.current];
        self.current = next.unwrap_or(self.current);
        next.is_some()
    }

    /// Moves to a turn. From the first turn, redo follows the path back to it.
    pub(crate) fn branch(&mut self, id: usize) -> Result<&Turn> {
        if id >= self.turns.len() {
            return Err(Error::invalid(
                "turn",
                format!("a number from 0 to {}", self.turns.len() - 1),
                id,
            ));
        }
        self.current = id;
        let mut child = id;
        while let Some(parent) = self.turns[child].parent {
            self.next[parent] = Some(child);
            child = parent;
        }
        Ok(self.current())
    }

    /// Returns the turns from the first to the current one.
    pub(crate) fn path(&self) -> Vec<&Turn> {
        let mut path: Vec<&Turn> = std::iter::successors(Some(self.current()), |turn| {
            turn.parent.map(|parent| &self.turns[parent])
        })
        .collect();
        path.reverse();
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns 0 - 1 - 2, and 3 as a sibling of 2.
    fn history() -> History {
        let mut history = History::new(RgbImage::new(1, 1));
        let add = |history: &mut History| {
            history
                .add(|id, parent| Turn {
                    parent: Some(parent),
                    ..Turn::given(id, RgbImage::new(1, 1))
                })
                .id
        };
        assert_eq!((add(&mut history), add(&mut history)), (1, 2));
        assert!(history.undo());
        assert_eq!(add(&mut history), 3);
        history
    }

    fn ids(history: &History) -> Vec<usize> {
        history.path().iter().map(|turn| turn.id).collect()
    }

    #[test]
    fn undo_ends_at_the_beginning_and_redo_at_the_last_turn() {
        let mut history = history();
        assert_eq!(ids(&history), [0, 1, 3]);
        assert!(!history.redo());
        assert!(history.undo() && history.undo() && !history.undo());
        assert_eq!(ids(&history), [0]);
        assert!(history.redo() && history.redo() && !history.redo());
        assert_eq!(ids(&history), [0, 1, 3]);
    }

    #[test]
    fn redo_follows_the_branch_that_was_visited_last() {
        let mut history = history();
        assert_eq!(history.branch(2).unwrap().id, 2);
        assert!(history.undo() && history.undo());
        assert!(history.redo() && history.redo());
        assert_eq!(ids(&history), [0, 1, 2]);
        let error = history.branch(4).unwrap_err().to_string();
        assert_eq!(error, "invalid turn: expected a number from 0 to 3, got 4");
        assert_eq!(history.current().id, 2);
    }

    #[test]
    fn a_tree_that_is_none_is_refused() {
        let turn = |id: usize, parent| Turn {
            parent,
            ..Turn::given(id, RgbImage::new(1, 1))
        };
        let is_tree = |parents: &[Option<usize>], next: &[Option<usize>], current| {
            let turns = parents
                .iter()
                .enumerate()
                .map(|(id, parent)| turn(id, *parent))
                .collect();
            History::of(turns, next.to_vec(), current).is_some()
        };
        assert!(is_tree(&[None, Some(0)], &[Some(1), None], 1));
        assert!(!is_tree(&[], &[], 0));
        assert!(!is_tree(&[None, Some(1)], &[None, None], 0));
        assert!(!is_tree(&[None, None], &[None, None], 0));
        assert!(!is_tree(&[None, Some(0)], &[Some(0), None], 0));
        assert!(!is_tree(&[None, Some(0)], &[Some(2), None], 0));
        assert!(!is_tree(&[None, Some(0)], &[None], 0));
        assert!(!is_tree(&[None, Some(0)], &[None, None], 2));
    }
}
