//! The dashboard: one read-only page that shows what the live report says, for the operator and for `bascule dashboard` alike.
//!
//! The page is three small scripts, a style sheet and a document, all in the program itself; nothing is built and nothing
//! comes from elsewhere. A browser gets the whole fleet once and then only what changes, as server-sent events. While
//! nobody looks nothing is made and nothing is kept
//! (docs/decisions/0035-the-dashboard-is-a-page-of-changes.md).

mod board;
mod calendar;
mod page;
mod serve;

pub use board::{Look, Source};
pub use calendar::{Calendar, FORESEEN_NODES, HORIZON, PolicyCalendar, Window, calendar};
pub use page::Dashboard;
pub use serve::serve;
