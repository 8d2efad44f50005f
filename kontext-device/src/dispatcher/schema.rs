//! Schemas of operators: `name.overload(Tensor q, float? scale=None) -> (Tensor, int)`.

use std::ffi::CString;

/// A schema, as far as the stack of a call depends on it.
#[derive(Debug)]
pub(super) struct Schema {
    pub(super) name: CString,
    pub(super) overload: CString,
    pub(super) parameters: Vec<Parameter>,
    pub(super) returns: Vec<Kind>,
}

/// A parameter of an operator.
#[derive(Debug)]
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// `true` if `None` may be passed, and the value is passed by a pointer.
    pub(super) optional: bool,
    /// The value of a call that does not name the parameter.
    pub(super) default: Option<Default>,
}

/// The kinds of values that a call passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tensor,
    Int,
    Float,
    Bool,
    /// Any other, for which only `None` can be passed.
    Other,
}

/// A default value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Default {
    None,
    Int(i64),
    Float(f64),
    Bool(bool),
}

impl Schema {
    /// Parses a schema with its namespace: `aten::mul.Tensor(Tensor self, Tensor other) -> Tensor`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let broken = || format!("not the schema of an operator: {text}");
        let (head, rest) = text.split_once('(').ok_or_else(broken)?;
        let (parameters, returns) = rest.rsplit_once("->").ok_or_else(broken)?;
        let parameters = parameters.trim().strip_suffix(')').ok_or_else(broken)?;
        let returns = returns.trim();
        let returns = returns
            .strip_prefix('(')
            .and_then(|inner| inner.strip_suffix(')'))
            .unwrap_or(returns);
        let (name, overload) = head.trim().split_once('.').unwrap_or((head.trim(), ""));
        let text = |text: &str| CString::new(text).map_err(|error| error.to_string());
        let returned = |item: &str| match kind(item) {
            (kind, false) if kind != Kind::Other => Ok(kind),
            _ => Err(format!("an operator that returns `{item}` is not supported")),
        };
        Ok(Self {
            name: text(name)?,
            overload: text(overload)?,
            parameters: items(parameters)
                .filter(|item| *item != "*")
                .map(Parameter::parse)
                .collect::<Result<_, _>>()?,
            returns: items(returns).map(returned).collect::<Result<_, _>>()?,
        })
    }
}

impl Parameter {
    fn parse(item: &str) -> Result<Self, String> {
        let (declared, default) = match item.split_once('=') {
            Some((declared, default)) => (declared.trim(), Some(default.trim())),
            None => (item, None),
        };
        let (of, name) = declared
            .rsplit_once(' ')
            .ok_or_else(|| format!("not a parameter of an operator: {item}"))?;
        let (kind, optional) = kind(of);
        let default = default.map(|text| default_of(kind, optional, text)).transpose()?;
        if kind == Kind::Other && default != Some(Default::None) {
            return Err(format!("the parameter `{item}` of an operator is not supported"));
        }
        Ok(Self {
            name: name.to_owned(),
            kind,
            optional,
            default,
        })
    }
}

fn default_of(kind: Kind, optional: bool, text: &str) -> Result<Default, String> {
    let parsed = match (kind, text) {
        (_, "None") if optional => Some(Default::None),
        (Kind::Int, number) => number.parse().ok().map(Default::Int),
        (Kind::Float, number) => number.parse().ok().map(Default::Float),
        (Kind::Bool, "True") => Some(Default::Bool(true)),
        (Kind::Bool, "False") => Some(Default::Bool(false)),
        _ => None,
    };
    parsed.ok_or_else(|| format!("the default `{text}` of an operator is not supported"))
}

/// Returns the kind of a type, and `true` if it is optional. Aliases (`Tensor(a!)?`) and names after the type of a
/// returned value are left out.
fn kind(of: &str) -> (Kind, bool) {
    let end = |c: char| !c.is_ascii_alphanumeric();
    let (base, mut rest) = of.split_at(of.find(end).unwrap_or(of.len()));
    if let Some((_, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
        rest = after;
    }
    let list = rest.starts_with('[');
    if let Some((_, after)) = rest.split_once(']') {
        rest = after;
    }
    let kind = match base {
        _ if list => Kind::Other,
        "Tensor" => Kind::Tensor,
        "int" | "SymInt" => Kind::Int,
        "float" => Kind::Float,
        "bool" => Kind::Bool,
        _ => Kind::Other,
    };
    (kind, rest.starts_with('?'))
}

/// Splits a list at the commas outside brackets.
fn items(list: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let parts = list.split(move |c: char| {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            _ => (),
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_types_and_defaults_are_read_in_both_ways_of_writing() {
        for text in [
            "a::fwd.x(Tensor q, Tensor(o!)? out=None, float s=0., int w=-1, *, bool? p=None, bool c=False, int[2]? \
             l=None) -> (Tensor(o!) out, SymInt most, float, bool)",
            "a::fwd.x(Tensor q,Tensor(o!)? out = None,float s = 0.0,int w = -1,bool? p = None,bool c = False,int[2]? \
             l = None) -> (Tensor(o!), int, float f, bool)",
        ] {
            let schema = Schema::parse(text).unwrap();
            assert_eq!((schema.name.as_c_str(), schema.overload.as_c_str()), (c"a::fwd", c"x"));
            assert_eq!(schema.returns, [Kind::Tensor, Kind::Int, Kind::Float, Kind::Bool]);
            let read = |p: &Parameter| (p.name.clone(), p.kind, p.optional, p.default);
            let expected = [
                ("q", Kind::Tensor, false, None),
                ("out", Kind::Tensor, true, Some(Default::None)),
                ("s", Kind::Float, false, Some(Default::Float(0.0))),
                ("w", Kind::Int, false, Some(Default::Int(-1))),
                ("p", Kind::Bool, true, Some(Default::None)),
                ("c", Kind::Bool, false, Some(Default::Bool(false))),
                ("l", Kind::Other, true, Some(Default::None)),
            ]
            .map(|(name, kind, optional, default)| (name.to_owned(), kind, optional, default));
            assert_eq!(schema.parameters.iter().map(read).collect::<Vec<_>>(), expected);
        }
        let schema = Schema::parse("aten::sym_size.int(Tensor self, int dim) -> SymInt").unwrap();
        assert_eq!(schema.returns, [Kind::Int]);
        assert!(Schema::parse("a::f(Tensor x) -> ()").unwrap().returns.is_empty());
    }

    #[test]
    fn what_a_call_cannot_pass_is_refused() {
        for text in [
            "fwd",
            "a::f(Tensor x)",
            "a::f(Tensor[] x) -> Tensor",
            "a::f(Tensor x, Scalar s=1) -> Tensor",
            "a::f(int n=many) -> Tensor",
            "a::f(Tensor x) -> Tensor[]",
            "a::f(Tensor x) -> Tensor?",
            "a::f(Tensor) -> Tensor",
        ] {
            assert!(Schema::parse(text).is_err(), "{text}");
        }
    }
}
