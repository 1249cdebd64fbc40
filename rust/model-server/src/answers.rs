//! Answers on their way from who runs the models to the calls that wait for them.

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::queue::Answer;

/// An answer, and where it goes.
pub type Addressed = (oneshot::Sender<Answer>, Answer);

/// Answers that are not delivered yet: a batch's all at once, and by whoever drives the sockets, so that they wake nobody else.
#[derive(Debug, Default)]
pub struct Answers {
    waiting: Mutex<Vec<Addressed>>,
    more: Notify,
}

impl Answers {
    /// Adds some, to be delivered when somebody does.
    pub fn put(&self, answers: Vec<Addressed>) {
        self.waiting.lock().extend(answers);
    }

    /// Delivers what there is.
    pub fn deliver(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for (sender, answer) in waiting {
            // A caller who has left is not told.
            let _ = sender.send(answer);
        }
    }

    /// Has [`Answers::deliver_when_told`] deliver.
    pub fn tell(&self) {
        self.more.notify_one();
    }

    /// Delivers whenever it is told that there is something, for ever.
    pub async fn deliver_when_told(&self) {
        loop {
            self.more.notified().await;
            self.deliver();
        }
    }
}
