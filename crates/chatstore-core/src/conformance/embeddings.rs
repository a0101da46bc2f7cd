//! Checks of embeddings.
