//! Checks of search.
