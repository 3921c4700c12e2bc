//! CEL expressions of object gates, which whoever writes a policy chooses: parsed and evaluated within bounds of depth and
//! time, on threads of their own, so that one that never ends or nests without end holds up its own gate and nobody else.
//!
//! The language itself bounds nothing: each loop within a loop multiplies by the length of a list, and lists are as long as
//! the objects of the cluster are large.

use super::{
    GateAnswer,
    needs::Needs,
    seen::Seen,
    syntax::{NODE, names_node, nesting},
};
use bascule_api::ObjectGate;
use cel::{Context, ExecutionError, Program, Value, context::VariableResolver};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How many objects a message names.
const SHOWN: usize = 3;
/// How many loops may lie within each other: enough for every container of a pod and all that a container lists.
const MOST_LOOPS: usize = 2;
/// How deep an expression may be; each level is a few frames of the stack of whoever evaluates it.
const DEEPEST: usize = 256;
/// The stack for that, measured: docs/decisions/0045-a-gates-expression-has-bounds.md.
const STACK: usize = 32 << 20;
/// How long one evaluation over all objects may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many expressions are told apart.
const MOST_EXPRESSIONS: usize = 256;

/// Ends an evaluation whose time is over: asked for each variable that is not of a loop, it knows only that nothing is known
/// any more, and every loop above ends with an error.
struct Clock {
    until: Instant,
    over: AtomicBool,
}

impl VariableResolver for Clock {
    fn resolve(&self, _: &str) -> Option<Value> {
        if self.over.load(Ordering::Relaxed) || Instant::now() >= self.until {
            self.over.store(true, Ordering::Relaxed);
            return Some(Value::Null);
        }
        None
    }
}

fn wrong(error: &str) -> GateAnswer {
    GateAnswer::Unknown(format!("the CEL expression is wrong: {error}"))
}

fn too_long() -> GateAnswer {
    GateAnswer::Unknown(format!("its expression takes longer than {} s for these objects", PATIENCE.as_secs()))
}

/// Evaluates expressions, each on one thread at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct Judges {
    busy: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
    needs: Arc<Mutex<HashMap<String, Arc<Needs>>>>,
}

impl Judges {
    /// What an expression looks at of each object.
    ///
    /// # Errors
    /// The answer, where the expression can't be used.
    pub(super) async fn needs(&self, expression: &str) -> Result<Arc<Needs>, GateAnswer> {
        if let Some(known) = self.needs.lock().unwrap_or_else(PoisonError::into_inner).get(expression) {
            return Ok(Arc::clone(known));
        }
        let text = expression.to_owned();
        let parse = move || compiled(&text).map(|program| Needs::of(&program.expression().expr));
        let needs = Arc::new(apart(parse).await?.map_err(|error| wrong(&error))?);
        let mut known = self.needs.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_EXPRESSIONS {
            known.clear();
        }
        known.insert(expression.to_owned(), Arc::clone(&needs));
        Ok(needs)
    }

    /// What a gate's expression says of objects.
    pub(super) async fn judge(&self, gate: &ObjectGate, objects: Arc<Vec<Seen>>, node: Option<&str>) -> GateAnswer {
        let (kind, expression, node) = (gate.kind.clone(), gate.cel.clone(), node.map(str::to_owned));
        self.run(&gate.cel, move || judge(&kind, &expression, &objects, node.as_deref())).await
    }

    async fn run(&self, expression: &str, work: impl FnOnce() -> GateAnswer + Send + 'static) -> GateAnswer {
        let place = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            if busy.len() >= MOST_EXPRESSIONS {
                busy.clear();
            }
            Arc::clone(busy.entry(expression.to_owned()).or_default())
        };
        // One that does not end keeps its place, and costs one thread and no second one.
        let Ok(place) = tokio::time::timeout(2 * PATIENCE, place.lock_owned()).await else { return too_long() };
        let work = move || {
            let _place = place;
            work()
        };
        apart(work).await.unwrap_or_else(|answer| answer)
    }
}

/// Works on a thread of its own, with the stack that an expression may need.
///
/// # Errors
/// The answer, where nothing comes of it.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, GateAnswer> {
    let (told, answer) = tokio::sync::oneshot::channel();
    // Whoever asked may be gone.
    let work = move || drop(told.send(work()));
    let thread = std::thread::Builder::new().name("cel".to_owned()).stack_size(STACK).spawn(work);
    if let Err(error) = thread {
        return Err(GateAnswer::Unknown(format!("there is no thread to evaluate its expression: {error}")));
    }
    match tokio::time::timeout(2 * PATIENCE, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        // Its time is over, or the library gave up in a way that is not its own.
        Ok(Err(_)) => Err(GateAnswer::Unknown("its expression can't be evaluated".to_owned())),
        Err(_) => Err(too_long()),
    }
}

/// Whether an expression that can be used asks about a node: names `node`, and not a loop's own variable of that name. For the
/// validation of policies.
///
/// # Errors
/// Why it can't be used.
pub fn check(expression: &str) -> Result<bool, String> {
    std::thread::scope(|scope| {
        let work = || compiled(expression).map(|program| names_node(&program.expression().expr));
        let thread = std::thread::Builder::new().name("cel".to_owned()).stack_size(STACK).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| format!("there is no thread to parse it: {error}"))?;
        thread.join().unwrap_or_else(|_| Err("it can't be parsed".to_owned()))
    })
}

fn compiled(expression: &str) -> Result<Program, String> {
    let program = Program::compile(expression).map_err(|error| first_line(&error.to_string()))?;
    let (loops, depth) = nesting(&program.expression().expr);
    if loops > MOST_LOOPS {
        return Err(format!(
            "{loops} of .all(), .exists(), .exists_one(), .filter() and .map() lie within each other, {MOST_LOOPS} may"
        ));
    }
    if depth > DEEPEST {
        return Err(format!("it is nested {depth} deep, {DEEPEST} may be"));
    }
    Ok(program)
}

fn first_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("it can't be parsed")
        .chars()
        .take(200)
        .collect()
}

fn judge(kind: &str, expression: &str, objects: &[Seen], node: Option<&str>) -> GateAnswer {
    let program = match compiled(expression) {
        Ok(program) => program,
        Err(error) => return wrong(&error),
    };
    if objects.is_empty() {
        return GateAnswer::Unknown(format!("there is no such {kind}"));
    }
    let mut context = Context::default();
    context.add_variable_from_value(NODE, node.unwrap_or_default().to_owned());
    let clock = Clock { until: Instant::now() + PATIENCE, over: AtomicBool::new(false) };
    let (mut bad, mut unknown) = (Vec::new(), Vec::new());
    for object in objects {
        let mut own = context.new_inner_scope();
        own.add_variable_from_value("object", object.value().clone());
        own.set_variable_resolver(&clock);
        match evaluate(expression, &program, &own) {
            Ok(true) => {}
            Ok(false) => bad.push(object.name().to_string()),
            Err(reason) => unknown.push(format!("{} ({reason})", object.name())),
        }
        if clock.resolve("").is_some() {
            return too_long();
        }
    }
    let list = |names: &[String]| {
        let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
        format!("{}{more}", names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", "))
    };
    if !bad.is_empty() {
        GateAnswer::Failed(format!("{kind} {} does not fulfil: {expression}", list(&bad)))
    } else if !unknown.is_empty() {
        GateAnswer::Unknown(format!("the expression can't be evaluated for {kind} {}", list(&unknown)))
    } else {
        GateAnswer::Passed
    }
}

fn evaluate(expression: &str, program: &Program, context: &Context<'_>) -> Result<bool, String> {
    match program.execute(context) {
        Ok(Value::Bool(holds)) => Ok(holds),
        Ok(_) => Err("it gives something other than true or false".to_owned()),
        Err(error) => Err(without_values(expression, &error)),
    }
}

/// What went wrong, in words that stand in the expression or here. An error of the library holds the values it was about, and
/// a key may be one: `{'a': true}[object.spec.secret]`.
fn without_values(expression: &str, error: &ExecutionError) -> String {
    match error {
        // Not yet: a pod that waits for its node, a status that nobody has written.
        ExecutionError::NoSuchKey(key) if names(expression, key) => format!("it has no {key} yet"),
        ExecutionError::NoSuchKey(_) => "it lacks a key that the expression makes of a value".to_owned(),
        ExecutionError::UndeclaredReference(name) if names(expression, name) => {
            format!("nothing is called {name}: there are `object` and `node`, and CEL's functions")
        }
        ExecutionError::InvalidArgumentCount { expected, actual } => {
            format!("a function takes {expected} arguments and is given {actual}")
        }
        ExecutionError::IndexOutOfBounds(_) => "a list has fewer entries than the index asks for".to_owned(),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "it divides by zero".to_owned(),
        ExecutionError::Overflow(..) => "a number becomes too large".to_owned(),
        ExecutionError::FunctionError { function, .. } if names(expression, function) => {
            format!("{function} can't take what it is given")
        }
        _ => "a value is of another type than the expression takes it for".to_owned(),
    }
}

/// Whether a word stands in an expression.
fn names(expression: &str, word: &str) -> bool {
    let mut words = expression.split(|c: char| !c.is_alphanumeric() && c != '_');
    // A label's key is no single word.
    words.any(|one| one == word)
        || ['\'', '"'].iter().any(|quote| expression.contains(&format!("{quote}{word}{quote}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::DynamicObject;

    fn deployment(name: &str, available: i64) -> Seen {
        let object = serde_json::from_value(serde_json::json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"replicas": 3}, "status": {"availableReplicas": available}
        }));
        Seen::of(&object.unwrap(), &Needs::whole()).unwrap()
    }

    const AVAILABLE: &str = "object.status.availableReplicas >= object.spec.replicas";

    #[test]
    fn an_expression_asks_about_a_node_if_it_names_one_and_nothing_else_is_called_so() {
        for (expression, named) in [
            ("object.spec.nodeName != node", true),
            ("!(has(object.spec.nodeName) && object.spec.nodeName == node)", true),
            ("object.spec.nodes.exists(n, n == node)", true),
            ("[node].all(node, object.spec.nodeName != node)", true),
            ("{node: true}[object.spec.nodeName]", true),
            // An apostrophe in a remark, or escaped in a text, hides nothing that follows.
            ("// don't reboot under a build\nobject.spec.nodeName != node", true),
            ("object.a != 'it\\'s' && object.spec.nodeName != node", true),
            // These speak of the cluster: what they say is no word about the node that tries a release.
            ("object.status.nodes.all(node, node.ready)", false),
            ("object.status.nodes.filter(node, !node.ready).size() == 0", false),
            ("object.spec.node == 'node' // node", false),
            ("object.node", false),
            ("true", false),
        ] {
            assert_eq!(check(expression), Ok(named), "{expression}");
        }
    }

    #[test]
    fn every_object_must_fulfil_it() {
        let good = [deployment("web", 3), deployment("cart", 4)];
        assert_eq!(judge("Deployment", AVAILABLE, &good, None), GateAnswer::Passed);
        let mixed = [deployment("web", 3), deployment("cart", 2)];
        let answer = judge("Deployment", AVAILABLE, &mixed, None);
        assert!(
            matches!(&answer, GateAnswer::Failed(m) if m.starts_with("Deployment shop/cart does not fulfil")),
            "{answer:?}"
        );
    }

    #[test]
    fn what_can_not_be_known_does_not_pass() {
        let one = [deployment("web", 3)];
        for (expression, objects, part) in [
            (AVAILABLE, &[][..], "no such Deployment"),
            ("object.status.", &one[..], "expression is wrong"),
            (
                "object.status.unknownField > 1",
                &one[..],
                "can't be evaluated for Deployment shop/web (it has no unknownField yet)",
            ),
            ("object.spec.replicas", &one[..], "other than true or false"),
        ] {
            let answer = judge("Deployment", expression, objects, None);
            assert!(matches!(&answer, GateAnswer::Unknown(m) if m.contains(part)), "{expression}: {answer:?}");
        }
        assert!(check("object.a ==").is_err() && check(AVAILABLE).is_ok());
    }

    #[test]
    fn an_answer_never_holds_what_an_object_holds() {
        const HELD: &str = "s3cr3t";
        let object = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"env": [{"name": "TOKEN", "value": HELD}], "map": {HELD: 1}, "size": 4_711, "none": 0}
        });
        let pod = [Seen::of(&serde_json::from_value(object).unwrap(), &Needs::whole()).unwrap()];
        for expression in [
            "{'a': true}[VALUE]",
            "object.spec[VALUE]",
            "VALUE > 1",
            "VALUE.nothing()",
            "VALUE.nothing",
            "VALUE + 1 == 2",
            "-VALUE == 1",
            "!VALUE",
            "[1][VALUE]",
            "[1][object.spec.size] == 1",
            "{VALUE: 1}[object.spec]",
            "{object.spec: true}[1]",
            "int(VALUE) == 1",
            "double(VALUE) == 1.0",
            "timestamp(VALUE) == timestamp('2026-01-01T00:00:00Z')",
            "duration(VALUE) == duration('1s')",
            "'a'.matches(VALUE + '(')",
            "object.spec.size / object.spec.none == 1",
            "object.spec.size % object.spec.none == 1",
            "object.spec.size * 9223372036854775807 == 1",
            "object.spec.map == 1 && object.spec.map < object.spec",
            "size(object.spec.size) == 1",
            "object.spec.map.all(key, {'a': true}[key])",
            "VALUE",
        ] {
            let expression = expression.replace("VALUE", "object.spec.env[0].value");
            let answer = judge("Pod", &expression, &pod, None);
            let said = answer.message();
            assert!(!said.contains(HELD) && !said.contains("4711") && !said.contains("4_711"), "{expression}: {said}");
            assert!(!answer.passed(), "{expression}");
        }
    }

    /// Of thousands of objects only that is kept.
    #[tokio::test]
    async fn what_an_expression_does_not_look_at_changes_no_answer() {
        let object = |spec: serde_json::Value, status: serde_json::Value| {
            serde_json::from_value::<DynamicObject>(serde_json::json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "web", "namespace": "shop", "generation": 3, "labels": {"app": "web", "a/b": "c"},
                    "managedFields": [{"manager": "kubectl", "operation": "Apply"}]},
                "spec": spec, "status": status,
            }))
            .unwrap()
        };
        let objects = [
            object(serde_json::json!({"nodeName": "n1", "size": 3, "list": [1, 2]}), serde_json::json!({"ready": 3})),
            object(serde_json::json!({"size": 2}), serde_json::json!({})),
            object(serde_json::json!("text"), serde_json::Value::Null),
            object(serde_json::json!([{"nodeName": "n1"}]), serde_json::json!({"ready": null})),
        ];
        let judges = Judges::default();
        for expression in [
            "object.spec.nodeName != node",
            "has(object.spec.nodeName)",
            "!has(object.status.ready) || object.status.ready >= object.spec.size",
            "has(object.status) && !has(object.status.nothing)",
            "object.status.nothing.more == 1",
            "object.metadata.generation + 1 == 4",
            "object.metadata.labels['a/b'] == 'c' && 'app' in object.metadata.labels",
            "object.metadata.name == 'web' && object.kind == 'Pod'",
            "object.spec.list.exists(one, one == 2)",
            "object.spec.list.map(one, one + object.spec.size) == [4, 5]",
            "object.spec == {'size': 2}",
            "object.spec.nodeName.startsWith('n')",
            "object.spec.size.nothing",
            "object.nothing == 1",
            "[object].all(one, one.spec.size == 2)",
            "{'a': true}[object.spec.nodeName]",
            "node == 'n1'",
        ] {
            let needs = judges.needs(expression).await.unwrap();
            for object in &objects {
                let [whole, kept] = [&Needs::whole(), &*needs].map(|needs| Seen::of(object, needs).unwrap());
                assert!(kept.weight() <= whole.weight(), "{expression}");
                let [whole, kept] = [whole, kept].map(|seen| judge("Pod", expression, &[seen], Some("n1")));
                assert_eq!(whole, kept, "{expression} of {object:?}");
            }
        }
        let needs = judges.needs("object.spec.nodeName != node").await.unwrap();
        let seen = Seen::of(&objects[0], &needs).unwrap();
        assert!(!format!("{seen:?}").contains("kubectl") && seen.weight() < 500, "{seen:?}");
        assert!(matches!(judges.needs("object.").await, Err(GateAnswer::Unknown(why)) if why.contains("is wrong")));
    }

    #[test]
    fn the_node_is_a_variable() {
        assert_eq!(judge("Deployment", "node == 'n1'", &[deployment("web", 3)], Some("n1")), GateAnswer::Passed);
    }

    /// As much as a policy may hold, of everything that nests.
    #[test]
    fn no_expression_ends_the_operator() {
        let long = |start: &str, part: &str, end: &str| {
            let times = (2_048 - start.len() - end.len()) / part.len();
            format!("{start}{}{end}", part.repeat(times))
        };
        let one = [deployment("web", 3)];
        for expression in [
            long("object", ".a", ""),
            long("true", "&&true", ""),
            long("1", "+1", " > 0"),
            long("object", "[0]", ""),
            long("", "(", ""),
            long("", "!", "true"),
            long("", "-", "1 == 1"),
            long("", "[", ""),
            long("", "{1:", ""),
            long("true", "?true:true", ""),
            long("", "size(", ""),
            format!("{}1{}", "(".repeat(1_000), ")".repeat(1_000)),
            format!("{}1{}", "[".repeat(1_000), "]".repeat(1_000)),
            format!("{}true", "true ? ".repeat(80)),
        ] {
            let since = Instant::now();
            let known = check(&expression);
            let answer = std::thread::Builder::new().stack_size(STACK).spawn({
                let (expression, one) = (expression.clone(), one.clone());
                move || judge("Deployment", &expression, &one, None)
            });
            // The library itself may give up (its arithmetic is checked in tests), and never for one that is accepted.
            let answer = answer.unwrap().join();
            let passed = answer.as_ref().is_ok_and(GateAnswer::passed);
            assert!(known.is_ok() && answer.is_ok() || !passed && known.is_err(), "{expression:.40}: {known:?}");
            assert!(since.elapsed() < 10 * PATIENCE, "{expression:.40} took {:?}", since.elapsed());
        }
        assert!(check(&long("object", ".a", "")).unwrap_err().contains("deep"));
    }

    #[test]
    fn loops_within_loops_are_counted() {
        let env = "object.spec.containers.all(c, c.env.all(e, e.name != 'A'))";
        check(env).unwrap();
        check(&format!("{env} && {env}")).unwrap();
        check("object.spec.containers.map(c, c.env).filter(e, size(e) > 1).all(e, e.exists(v, v.name == 'A'))")
            .unwrap();
        let third = "object.a.all(a, object.a.exists(b, object.a.exists_one(c, c == b)))";
        assert!(check(third).unwrap_err().contains("3 of .all()"), "{:?}", check(third));
        assert!(check("object.a.all(a, [1].map(b, {1: a.filter(c, true)}) == [])").is_err());
    }

    #[test]
    fn one_that_takes_long_ends() {
        let list: Vec<i64> = (0..20_000).collect();
        let object = serde_json::json!({
            "apiVersion": "v1", "kind": "List", "metadata": {"name": "long"}, "spec": {"list": list}
        });
        let long = [Seen::of(&serde_json::from_value(object).unwrap(), &Needs::whole()).unwrap()];
        let since = Instant::now();
        let answer = judge("List", "object.spec.list.all(a, object.spec.list.all(b, a + b >= 0))", &long, None);
        assert!(matches!(&answer, GateAnswer::Unknown(why) if why.contains("takes longer than 2 s")), "{answer:?}");
        assert!(since.elapsed() < 5 * PATIENCE, "{:?}", since.elapsed());
    }

    /// Even what no clock reaches holds up nobody but its own gate.
    #[tokio::test]
    async fn one_that_never_ends_keeps_its_own_place_only() {
        let judges = Judges::default();
        let (begun, begins) = tokio::sync::oneshot::channel::<()>();
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let hangs = move || {
            let _ = begun.send(());
            let _ = wait.recv();
            GateAnswer::Passed
        };
        let first = tokio::spawn({
            let judges = judges.clone();
            async move { judges.run("hangs", hangs).await }
        });
        begins.await.unwrap();
        assert_eq!(judges.run("other", || GateAnswer::Passed).await, GateAnswer::Passed);
        let again = judges.run("hangs", || GateAnswer::Passed);
        assert!(tokio::time::timeout(Duration::from_millis(50), again).await.is_err(), "no second thread for the same");
        end.send(()).unwrap();
        let _ = first.await.unwrap();
        assert_eq!(judges.run("hangs", || GateAnswer::Passed).await, GateAnswer::Passed);
    }
}
