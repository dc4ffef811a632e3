//! Who may ask what on the control socket.

/// Members of this group may read, where the system has it.
#[cfg(unix)]
pub(super) const READERS: &str = "flowgate";

/// What a client may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing, for this reason.
    None(String),
    /// Ask how things stand.
    Read,
    /// Everything.
    Full,
    /// Everything, by requests that have this.
    #[cfg(any(windows, test))]
    Token(super::local::Token),
}

impl Access {
    /// What it may do by one request.
    #[cfg(any(windows, test))]
    pub(super) fn of_request(&self, headers: &hyper::HeaderMap) -> Self {
        match self {
            Self::Token(token) if token.is_in(headers) => Self::Full,
            Self::Token(_) => Self::None(
                "the request lacks the token that stands in the file of this flowgate, which only its \
                 user and administrators can read"
                    .to_owned(),
            ),
            other => other.clone(),
        }
    }

    /// What it may do by one request: whatever it has.
    #[cfg(not(any(windows, test)))]
    pub(super) fn of_request(&self, _headers: &hyper::HeaderMap) -> Self {
        self.clone()
    }
}
