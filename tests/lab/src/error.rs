//! The one error of the laboratory: the step that failed, and its cause.

use std::fmt;

/// What went wrong, and while doing what.
#[derive(Debug)]
pub struct Error {
    step: String,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A failed step without a deeper cause. The text is a whole sentence's worth: "no line matched in 5 s".
    pub fn new(step: impl Into<String>) -> Self {
        Self { step: step.into(), cause: None }
    }

    /// A failed step and the error that it met.
    pub fn caused(
        step: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { step: step.into(), cause: Some(cause.into()) }
    }

    /// For `map_err`: names the step of whatever error comes.
    pub(crate) fn at<E>(step: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let step = step.into();
        move |cause| Self::caused(step, cause)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.step)?;
        if let Some(cause) = &self.cause {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|cause| &**cause as &(dyn std::error::Error + 'static))
    }
}
