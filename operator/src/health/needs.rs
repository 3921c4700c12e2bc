//! What an expression looks at of an object, so that no more of it is kept: thousands of objects whole are more than the
//! operator may have of memory, and most gates look at two or three fields.

use super::syntax::parts;
use cel::{
    Value,
    common::ast::Expr,
    objects::{Key, Map},
};
use std::{collections::BTreeMap, sync::Arc};

/// How deep fields are told apart; what lies deeper is kept with all that is in it.
const DEEPEST: usize = 8;

/// Fields of an object, each with those of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// All of it.
    whole: bool,
    fields: BTreeMap<Arc<String>, Needs>,
}

impl Needs {
    /// All that there is.
    pub(super) fn whole() -> Self {
        Self { whole: true, fields: BTreeMap::new() }
    }

    /// What an expression may look at of `object`, whichever way its evaluation goes.
    pub(super) fn of(expression: &Expr) -> Self {
        let mut needs = Self::default();
        needs.gather(expression);
        needs
    }

    fn gather(&mut self, expression: &Expr) {
        match path(expression) {
            Some(path) => self.add(path.get(..DEEPEST).unwrap_or(&path)),
            None => parts(expression).into_iter().for_each(|part| self.gather(part)),
        }
    }

    fn add(&mut self, path: &[&str]) {
        match path {
            _ if self.whole => {}
            [] => *self = Self::whole(),
            [field, rest @ ..] => self.fields.entry(Arc::new((*field).to_owned())).or_default().add(rest),
        }
    }

    /// Adds what somebody else looks at.
    pub(super) fn join(&mut self, other: &Self) {
        if self.whole || other.whole {
            *self = Self::whole();
            return;
        }
        for (name, needs) in &other.fields {
            self.fields.entry(Arc::clone(name)).or_default().join(needs);
        }
    }

    /// Whether who has this has all that `other` is.
    pub(super) fn cover(&self, other: &Self) -> bool {
        let has = |(name, needs): (&Arc<String>, &Self)| self.fields.get(name).is_some_and(|own| own.cover(needs));
        self.whole || (!other.whole && other.fields.iter().all(has))
    }

    /// An object with these fields only. Whatever leads to one is there if it was, so that an expression which looks at
    /// nothing else can't tell the two apart.
    pub(super) fn kept(&self, value: &Value) -> Value {
        match value {
            Value::Map(map) if !self.whole => {
                let kept = self.fields.iter().filter_map(|(name, needs)| {
                    let key = Key::String(Arc::clone(name));
                    let value = map.map.get(&key)?;
                    Some((key, needs.kept(value)))
                });
                Value::Map(Map { map: Arc::new(kept.collect()) })
            }
            other => other.clone(),
        }
    }
}

/// The fields that an expression goes through from `object` on, if it does nothing else.
fn path(expression: &Expr) -> Option<Vec<&str>> {
    match expression {
        Expr::Ident(name) if name.trim_start_matches('.') == "object" => Some(Vec::new()),
        Expr::Select(select) => {
            let mut path = path(&select.operand.expr)?;
            path.push(select.field.as_str());
            Some(path)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cel::Program;

    fn needs(expression: &str) -> Needs {
        Needs::of(&Program::compile(expression).unwrap().expression().expr)
    }

    fn shown(needs: &Needs) -> String {
        if needs.whole {
            return "*".to_owned();
        }
        let fields = needs.fields.iter().map(|(name, needs)| format!("{name}:{}", shown(needs)));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn an_expression_needs_the_fields_that_it_goes_through() {
        for (expression, wanted) in [
            ("true", "{}"),
            ("node == 'n1'", "{}"),
            ("object.spec.nodeName != node", "{spec:{nodeName:*}}"),
            ("object.status.ready >= object.spec.replicas", "{spec:{replicas:*} status:{ready:*}}"),
            ("'fit' in object.metadata.labels", "{metadata:{labels:*}}"),
            ("object.metadata.labels['a/b'] == 'c'", "{metadata:{labels:*}}"),
            ("has(object.status.phase) && object.status.phase == 'Running'", "{status:{phase:*}}"),
            ("has(object.status)", "{status:*}"),
            ("object.status.conditions.exists(c, c.type == 'Ready')", "{status:{conditions:*}}"),
            (
                "object.spec.containers.all(c, c.name != object.metadata.name)",
                "{metadata:{name:*} spec:{containers:*}}",
            ),
            ("object.spec.a == 1 || object.spec == {}", "{spec:*}"),
            ("object.spec == {} || object.spec.a == 1", "{spec:*}"),
            // Whatever becomes of the object itself, nobody follows it.
            ("[object].all(o, o.spec.a == 1)", "*"),
            ("object == object", "*"),
            ("size(object) > 1", "*"),
            ("object['spec'].a == 1", "*"),
            ("{'a': object}.a.spec.b == 1", "*"),
            // What a loop calls by the same name costs a field too many at most.
            ("[{'a': 1}].all(object, object.a == 1)", "{a:*}"),
            ("object.a.b.c.d.e.f.g.h.i.j == 1", "{a:{b:{c:{d:{e:{f:{g:{h:*}}}}}}}}"),
        ] {
            assert_eq!(shown(&needs(expression)), wanted, "{expression}");
        }
    }

    #[test]
    fn what_several_need_has_what_each_of_them_needs() {
        let all = ["true", "object.a.b", "object.a.c", "object.a", "object.d", "object"].map(needs);
        for one in &all {
            for other in &all {
                let mut both = one.clone();
                both.join(other);
                assert!(both.cover(one) && both.cover(other), "{} {}", shown(one), shown(other));
                assert_eq!(both == *one, one.cover(other), "{} {}", shown(one), shown(other));
            }
        }
        assert!(!all[1].cover(&all[2]) && !all[1].cover(&all[3]) && all[3].cover(&all[1]) && all[1].cover(&all[0]));
    }
}
