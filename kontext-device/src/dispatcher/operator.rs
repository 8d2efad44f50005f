//! Operators and their calls.

use kontext_core::{Error, Result};
use tch::{TchError, Tensor};

use super::functions::{Functions, functions};
use super::schema::{Default, Kind, Parameter, Schema};
use super::stack::{Packed, unpack};

/// An operator of libtorch's dispatcher, with its schema.
///
/// A call passes arguments by name; parameters that it does not name get their defaults. It runs as an operation of tch
/// does: on the current thread and its current stream, and recorded for gradients if the operator has a formula for
/// them.
///
/// # Example
/// ```
/// use kontext_core::{Device, Kind, Tensor};
/// use kontext_device::dispatcher::{Argument, Operator, Output};
/// # #[cfg(unix)] {
/// let schema = "aten::nan_to_num(Tensor self, float? nan=None, float? posinf=None, float? neginf=None) -> Tensor";
/// // SAFETY: this is its schema in libtorch 2.11.
/// let operator = unsafe { Operator::new(schema)? };
/// let x = Tensor::from_slice(&[1.0, f64::NAN]);
/// let out = operator.call(&[("self", Argument::Tensor(&x)), ("nan", Argument::Float(7.0))])?;
/// let Output::Tensor(out) = &out[0] else { panic!("the schema returns a tensor") };
/// assert_eq!(Vec::<f64>::try_from(out)?, [1.0, 7.0]);
/// # }
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Operator {
    schema: Schema,
}

/// An argument of a call.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Argument<'a> {
    /// No value, for an optional parameter.
    None,
    /// A tensor.
    Tensor(&'a Tensor),
    /// An `int` or `SymInt`.
    Int(i64),
    /// A `float`, which has 64 bits.
    Float(f64),
    /// A `bool`.
    Bool(bool),
}

/// A value that a call returns.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output {
    /// A tensor, undefined if the operator returned none.
    Tensor(Tensor),
    /// An `int` or `SymInt`.
    Int(i64),
    /// A `float`.
    Float(f64),
    /// A `bool`.
    Bool(bool),
}

impl Operator {
    /// Describes an operator by its whole schema: namespace, name, overload, parameters in their order, results. The
    /// types are `Tensor`, `int`, `SymInt`, `float` and `bool`; others only for optional parameters, which stay `None`.
    ///
    /// # Errors
    /// [`Error::Bug`] if the text is not such a schema.
    ///
    /// # Safety
    /// If an operator of this name and overload is registered in libtorch when it is called, its schema is this one:
    /// libtorch reads as many words as its own schema says, and takes them for the types that it says.
    #[allow(unsafe_code)]
    pub unsafe fn new(schema: &str) -> Result<Self> {
        let schema = Schema::parse(schema).map_err(Error::bug)?;
        Ok(Self { schema })
    }

    /// Returns the operator's name with its namespace, without the overload: `aten::mul`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.schema.name.to_str().unwrap_or_default()
    }

    /// Returns `true` if the operator has a parameter of this name.
    #[must_use]
    pub fn has_parameter(&self, name: &str) -> bool {
        self.schema.parameters.iter().any(|parameter| parameter.name == name)
    }

    /// Calls the operator with named arguments, in any order, and returns its results in theirs.
    ///
    /// # Errors
    /// [`Error::Bug`] if an argument is missing, of the wrong type, named twice or not a parameter. [`Error::Torch`] if
    /// libtorch fails or does not know the operator: its C interface writes the cause to the program's standard error
    /// and returns only that it failed. [`Error::Device`] where libtorch's C interface is not available.
    #[allow(unsafe_code)]
    pub fn call(&self, arguments: &[(&str, Argument<'_>)]) -> Result<Vec<Output>> {
        let functions = functions().map_err(|reason| Error::Device {
            device: self.name().to_owned(),
            reason,
        })?;
        let Schema {
            name,
            overload,
            parameters,
            returns,
        } = &self.schema;
        self.check_names(arguments)?;
        let mut packed = Vec::with_capacity(parameters.len());
        for parameter in parameters {
            let mut given = arguments.iter().filter(|(name, _)| *name == parameter.name);
            packed.push(self.packed(functions, parameter, given.next().map(|(_, value)| *value))?);
        }
        let mut stack: Vec<u64> = packed.into_iter().map(Packed::release).collect();
        stack.resize(stack.len().max(returns.len()), 0);
        // SAFETY: the stack has a word for each parameter, of the type that the schema says, and place for each result
        // (`Operator::new` requires that libtorch has this schema). The call owns the words: it takes each argument
        // over before the operator runs, also if that fails; only if libtorch does not know the operator, they leak.
        let status = unsafe { (functions.call)(name.as_ptr(), overload.as_ptr(), stack.as_mut_ptr()) };
        if status != 0 {
            let text = format!(
                "`{}` was refused; libtorch has written the cause to the program's standard error",
                self.name()
            );
            return Err(TchError::Torch(text).into());
        }
        let results = stack.into_iter().zip(returns);
        // SAFETY: the call has succeeded, so these words are the results of the schema, each unpacked once.
        Ok(results.map(|(word, kind)| unsafe { unpack(word, *kind) }).collect())
    }

    fn check_names(&self, arguments: &[(&str, Argument<'_>)]) -> Result<()> {
        for (index, (name, _)) in arguments.iter().enumerate() {
            if !self.has_parameter(name) {
                return Err(self.wrong(&format!("no parameter `{name}`")));
            }
            if arguments.iter().take(index).any(|(earlier, _)| earlier == name) {
                return Err(self.wrong(&format!("`{name}` twice")));
            }
        }
        Ok(())
    }

    fn packed(
        &self,
        functions: &'static Functions,
        parameter: &Parameter,
        value: Option<Argument<'_>>,
    ) -> Result<Packed> {
        let missing = || self.wrong(&format!("`{}` is missing", parameter.name));
        let value = match value {
            Some(value) => value,
            None => parameter.default.map(Argument::from).ok_or_else(missing)?,
        };
        let word = |word: u64| Ok(Packed::word(functions, word));
        let packed = match (value, parameter.kind) {
            (Argument::None, _) if parameter.optional => return word(0),
            (Argument::Tensor(tensor), Kind::Tensor) => Packed::tensor(functions, tensor),
            (Argument::Int(value), Kind::Int) => word(value.cast_unsigned()),
            (Argument::Float(value), Kind::Float) => word(value.to_bits()),
            (Argument::Bool(value), Kind::Bool) => word(u64::from(value)),
            _ => Err(self.wrong(&format!("`{}` of another type", parameter.name))),
        }?;
        if parameter.optional { packed.boxed() } else { Ok(packed) }
    }

    fn wrong(&self, what: &str) -> Error {
        Error::bug(format!("a call of `{}` with {what}", self.name()))
    }
}

impl From<Default> for Argument<'_> {
    fn from(value: Default) -> Self {
        match value {
            Default::None => Self::None,
            Default::Int(value) => Self::Int(value),
            Default::Float(value) => Self::Float(value),
            Default::Bool(value) => Self::Bool(value),
        }
    }
}
