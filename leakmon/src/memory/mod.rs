//! Reading a target's memory: the states of its tasks, and a census of those that it holds.
//!
//! In: where an image's task types lie in a process ([`layout::Layouts`]), addresses of headers. Out: plain data. It never
//! writes, never stops the process, and needs no probe: all it asks of the kernel is `process_vm_readv`. The process runs
//! on meanwhile, so everything is read twice before it is believed.
//!
//! | file | knows |
//! | --- | --- |
//! | `program` | where an image lies in a process that runs it |
//! | `reader` | how to read pieces of another process's memory, within bounds |
//! | `layout` | where a task's words lie, by its vtable |
//! | `header` | what these words say: tokio's state word, and what no task can have there |
//! | `places` | what is read where a task may be |
//! | `scan` | how to find words that are a vtable's address in resident memory, and what is there |
//! | `pace` | how fast a census goes |
//! | `census` | the tasks of a process, by type and state |
//! | `churn` | the types whose tasks come and go meanwhile |
//! | `lists` | the lists in which runtimes keep their tasks |
//! | `states` | the states of tasks whose headers are known |
//! | `older` | the tasks that are older than the attach |
//! | `service` | the thread that does all this beside the loop |

pub mod census;
mod churn;
pub mod header;
pub mod layout;
mod lists;
pub mod older;
mod pace;
mod places;
pub mod program;
pub mod reader;
mod scan;
pub mod service;
pub mod states;
