//! Panics as values: a broken assertion is a violation like any other.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static IS_CATCHING: Cell<bool> = const { Cell::new(false) };
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs something and returns the message of its panic, if it does. Nothing is printed: shrinking
/// a run that panics makes it panic a thousand times.
pub(super) fn catch<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |panic| {
            if IS_CATCHING.get() {
                MESSAGE.set(panic.to_string());
            } else {
                print(panic);
            }
        }));
    });
    IS_CATCHING.set(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    IS_CATCHING.set(false);
    result.map_err(|_| MESSAGE.take())
}
