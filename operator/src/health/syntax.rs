//! What an expression is made of, once it is parsed.

use cel::common::ast::{EntryExpr, Expr, IdedEntryExpr};

/// The variable that stands for the name of the node that a gate is asked for.
pub(super) const NODE: &str = "node";

/// Whether an expression names it, and not a loop's own variable of that name.
pub(super) fn names_node(expression: &Expr) -> bool {
    match expression {
        Expr::Ident(name) => name.trim_start_matches('.') == NODE,
        Expr::Comprehension(made) => {
            let its_own = made.iter_var == NODE || made.iter_var2.as_deref() == Some(NODE);
            let within = [&made.loop_cond.expr, &made.loop_step.expr, &made.result.expr];
            let outside = [&made.iter_range.expr, &made.accu_init.expr];
            outside.into_iter().any(names_node) || (!its_own && within.into_iter().any(names_node))
        }
        other => parts(other).into_iter().any(names_node),
    }
}

/// How many loops lie within each other, and how deep the expression is.
pub(super) fn nesting(expression: &Expr) -> (usize, usize) {
    if let Expr::Comprehension(made) = expression {
        let within = [&made.accu_init.expr, &made.loop_cond.expr, &made.loop_step.expr, &made.result.expr];
        // The range is gone through before the loop: one behind the other and not one in the other.
        let (range, deep) = nesting(&made.iter_range.expr);
        let (loops, depth) = deepest(&within);
        return (range.max(loops + 1), deep.max(depth) + 1);
    }
    let (loops, depth) = deepest(&parts(expression));
    (loops, depth + 1)
}

/// The expressions that an expression is made of.
pub(super) fn parts(expression: &Expr) -> Vec<&Expr> {
    match expression {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Vec::new(),
        Expr::Call(call) => {
            let target = call.target.iter().map(|target| &target.expr);
            target.chain(call.args.iter().map(|argument| &argument.expr)).collect()
        }
        Expr::List(list) => list.elements.iter().map(|element| &element.expr).collect(),
        Expr::Map(map) => entries(&map.entries),
        Expr::Struct(made) => entries(&made.entries),
        Expr::Select(select) => vec![&select.operand.expr],
        Expr::Comprehension(made) => vec![
            &made.iter_range.expr,
            &made.accu_init.expr,
            &made.loop_cond.expr,
            &made.loop_step.expr,
            &made.result.expr,
        ],
    }
}

/// The expressions of a map's or a struct's entries.
fn entries(entries: &[IdedEntryExpr]) -> Vec<&Expr> {
    let parts = entries.iter().flat_map(|entry| match &entry.expr {
        EntryExpr::StructField(field) => vec![&field.value.expr],
        EntryExpr::MapEntry(entry) => vec![&entry.key.expr, &entry.value.expr],
    });
    parts.collect()
}

fn deepest(parts: &[&Expr]) -> (usize, usize) {
    parts.iter().map(|part| nesting(part)).fold((0, 0), |most, one| (most.0.max(one.0), most.1.max(one.1)))
}
