//! Values on their way into statements, each with its type: an unnamed statement must name the
//! types of its parameters, and a prepared one is found again by them.

use std::marker::PhantomData;

use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

/// A value and its type in SQL.
pub(crate) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// A type of ours with its counterpart in SQL.
pub(crate) trait SqlType: ToSql + Sync + Sized {
    /// The counterpart.
    const TYPE: Type;
    /// The counterpart of a list of these.
    const ARRAY: Type;
}

macro_rules! sql_types {
    ($($ours:ty => $theirs:ident, $array:ident;)+) => {
        $(impl SqlType for $ours {
            const TYPE: Type = Type::$theirs;
            const ARRAY: Type = Type::$array;
        })+
    };
}

sql_types! {
    i16 => INT2, INT2_ARRAY;
    i32 => INT4, INT4_ARRAY;
    i64 => INT8, INT8_ARRAY;
    bool => BOOL, BOOL_ARRAY;
    &str => TEXT, TEXT_ARRAY;
    String => TEXT, TEXT_ARRAY;
    &[u8] => BYTEA, BYTEA_ARRAY;
    f32 => FLOAT4, FLOAT4_ARRAY;
    Uuid => UUID, UUID_ARRAY;
}

impl<T: SqlType> SqlType for Option<T> {
    const TYPE: Type = T::TYPE;
    const ARRAY: Type = T::ARRAY;
}

impl<T: SqlType> SqlType for Vec<T> {
    const TYPE: Type = T::ARRAY;
    const ARRAY: Type = T::ARRAY;
}

/// The numbers of a vector.
impl SqlType for &[f32] {
    const TYPE: Type = Type::FLOAT4_ARRAY;
    const ARRAY: Type = Type::FLOAT4_ARRAY;
}

/// Stands for the type of a value.
pub(crate) fn of<T>(_: &T) -> PhantomData<T> {
    PhantomData
}

/// The type that `value` would give; it is not called.
pub(crate) fn type_of<T: SqlType>(_: impl FnOnce() -> PhantomData<T>) -> Type {
    T::TYPE
}

/// The parameters of a statement, in the order of `$1`, `$2` … A literal, so that what it borrows
/// lives as long as the variable it is bound to.
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$((
            &$value as &(dyn tokio_postgres::types::ToSql + Sync),
            $crate::params::type_of(|| $crate::params::of(&$value)),
        )),*]
    };
}
pub(crate) use params;
