// What the page knows, and what follows from it. No document in here.

// In the order in which somebody who is woken up wants to see them.
export const STATES = {
  Failed: "failed", Reverting: "reverting", Rebooting: "rebooting", Draining: "draining", Trial: "on trial",
  Staging: "staging", Waiting: "waiting", Unknown: "not under way", Current: "up to date",
};
const MOVES = new Set(["Draining", "Rebooting", "Trial", "Reverting"]);
const HOLDS_ALL = new Set(["Halted", "PolicyConflict"]);
const ill = ({ type, status, reason }) =>
  type === "Accepted" ? status === "False"
  : type === "MaintenancePlanned" ? reason === "HookFailed"
  : HOLDS_ALL.has(type) && status === "True";
const VERSIONS = 8;

export const fleet = { ready: false, head: null, plannedAt: null, nodes: new Map(), waits: new Map(), calendar: null };

export function whole(data) {
  fleet.ready = true;
  fleet.nodes = new Map(data.nodes.map(node => [node.name, node]));
  fleet.waits = new Map(Object.entries(data.waits));
  fleet.head = data.head;
  fleet.plannedAt = data.plannedAt;
}

export function change(data) {
  for (const [id, wait] of Object.entries(data.waits)) fleet.waits.set(id, wait);
  for (const node of data.nodes) fleet.nodes.set(node.name, node);
  for (const name of data.gone ?? []) fleet.nodes.delete(name);
  if (data.head) fleet.head = data.head;
  fleet.plannedAt = data.plannedAt;
}

export const wait = node => fleet.waits.get(String(node.wait)) ?? { reason: "Unknown", message: "" };
const byName = (a, b) => a.name < b.name ? -1 : 1;
export const object = wait => wait.object
  ? `${wait.object.kind} ${wait.object.namespace ? wait.object.namespace + "/" : ""}${wait.object.name}` : "";
const transfers = node => node.state === "Staging" && node.percent !== undefined;

/** The nodes of a policy, or of all, by name. */
export function nodesOf(policy) {
  const nodes = [...fleet.nodes.values()];
  return (policy ? nodes.filter(node => node.policy === policy) : nodes).sort(byName);
}

export function countStates(nodes) {
  const counts = new Map(Object.keys(STATES).map(state => [state, 0]));
  for (const node of nodes) counts.set(node.state, (counts.get(node.state) ?? 0) + 1);
  return counts;
}

/** Zones, the most frequent versions, and how many nodes each pair has. */
export function zones(nodes) {
  const zones = new Map(), totals = new Map();
  for (const node of nodes) {
    const version = node.booted ?? "not reported", zone = node.zone ?? "no zone";
    if (!zones.has(zone)) zones.set(zone, { zone, nodes: [], versions: new Map() });
    const row = zones.get(zone);
    row.nodes.push(node);
    row.versions.set(version, (row.versions.get(version) ?? 0) + 1);
    totals.set(version, (totals.get(version) ?? 0) + 1);
  }
  const frequent = [...totals].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).map(([version]) => version);
  const versions = frequent.slice(0, VERSIONS), others = new Set(frequent.slice(VERSIONS));
  return { rows: [...zones.values()].sort((a, b) => a.zone < b.zone ? -1 : 1), versions, others };
}

/** Nodes under way. Staging harms nothing and goes last; of the others those that take longest come first. */
export function moving(nodes) {
  const rank = node => [node.state === "Staging" ? 1 : 0, node.since ?? "9"].join();
  return nodes.filter(node => MOVES.has(node.state) || transfers(node)).sort((a, b) => rank(a) < rank(b) ? -1 : 1);
}

/** What nodes wait for: one row for each reason, most frequent first. */
export function waiting(nodes) {
  const rows = new Map();
  for (const node of nodes) {
    if (MOVES.has(node.state) || transfers(node) || node.state === "Current" || node.state === "Failed") continue;
    const why = wait(node);
    if (!rows.has(why.reason)) rows.set(why.reason, { reason: why.reason, count: 0, messages: new Map(), objects: new Set(), until: null });
    const row = rows.get(why.reason);
    row.count += 1;
    row.messages.set(why.message ?? "", (row.messages.get(why.message ?? "") ?? 0) + 1);
    if (why.object && !["Node", "NodeUpdate"].includes(why.object.kind)) row.objects.add(object(why));
    if (why.until && (!row.until || why.until < row.until)) row.until = why.until;
  }
  for (const row of rows.values()) {
    row.message = [...row.messages].sort((a, b) => b[1] - a[1])[0][0];
    row.objects = [...row.objects].sort();
  }
  return [...rows.values()].sort((a, b) => b.count - a.count || (a.reason < b.reason ? -1 : 1));
}

/** What a person has to know before anything else. */
export function notices(now) {
  const list = [];
  if (fleet.head.note) list.push({ bad: false, text: fleet.head.note });
  for (const freeze of freezes()) {
    if (!freeze.active(now)) continue;
    const by = freeze.spec.requestedBy ? ` by ${freeze.spec.requestedBy}` : "";
    list.push({ bad: false, text: `Frozen ${freeze.place} (${freeze.name}${by}): ${freeze.spec.reason}`, until: freeze.endsAt });
  }
  for (const policy of fleet.head.policies) {
    const status = policy.status;
    if (policy.paused) list.push({ bad: false, text: `${policy.name} is paused by its spec: nothing new starts` });
    for (const condition of status.conditions ?? []) {
      if (ill(condition)) list.push({ bad: true, text: `${policy.name}: ${condition.type} is ${condition.status}, ${condition.reason}: ${condition.message}` });
    }
    if (status.repository?.error) list.push({ bad: true, text: `${policy.name}: its repository can't be read: ${status.repository.error}` });
    for (const blocked of status.blocked ?? []) list.push({ bad: false, text: `${policy.name}: ${blocked.version} is blocked by ${blocked.by}: ${blocked.reason}` });
  }
  const failed = [...fleet.nodes.values()].filter(node => node.state === "Failed").sort(byName);
  for (const node of failed.slice(0, 8)) list.push({ bad: true, text: `${node.name} has failed: ${wait(node).message}` });
  if (failed.length > 8) list.push({ bad: true, text: `${failed.length - 8} more nodes have failed` });
  return list;
}

export function seconds(duration) {
  const units = { w: 604800, d: 86400, h: 3600, m: 60, s: 1 };
  return [...String(duration).matchAll(/(\d+)(ms|[wdhms])/g)].reduce((sum, [, count, unit]) => sum + count * (units[unit] ?? 0), 0);
}

function freezes() {
  return (fleet.head.freezes ?? []).map(freeze => {
    const spec = freeze.spec;
    const named = (kind, names) => names.length === 1 ? `${kind} ${names[0]}` : `${kind} ${names[0]} and ${names.length - 1} more`;
    const place = spec.policies?.length ? named("policy", spec.policies) : spec.nodes?.length ? named("node", spec.nodes)
      : spec.policySelector ? "policies by label" : "everywhere";
    const endsAt = new Date(Date.parse(freeze.createdAt) + 1000 * seconds(spec.duration)).toISOString();
    return { ...freeze, place, endsAt, active: now => !spec.endedBy && endsAt > now };
  });
}

const OUTCOMES = { Running: "running", Done: "done", Superseded: "a newer release took its place", Blocked: "blocked after failures", RolledBack: "rolled back" };

/** Rollouts, failures, rollbacks and freezes, newest first. */
export function history(now) {
  const list = [];
  for (const policy of fleet.head.policies) {
    for (const one of policy.status.history ?? []) {
      const result = one.outcome === "Done" ? `done, ${count(one.nodes, "node")}` : OUTCOMES[one.outcome] ?? one.outcome;
      list.push({ at: one.startedAt, policy: policy.name, what: `rollout of ${one.version}`, result, by: "", reason: "" });
    }
    for (const one of policy.status.failures ?? []) {
      list.push({ at: one.at, policy: policy.name, what: `${one.version} failed on ${one.node}`, result: one.category, by: "", reason: one.message });
    }
  }
  for (const one of fleet.head.rollbacks ?? []) {
    const to = one.status?.to ? ` to ${one.status.to}` : "";
    list.push({ at: one.createdAt, policy: one.spec.policy, what: `rollback${to}`, result: one.status?.progress ?? "", by: one.spec.requestedBy ?? "", reason: one.spec.reason });
  }
  for (const one of freezes()) {
    const what = `${one.spec.undoDrains ? "abort" : "freeze"} ${one.place}`;
    const result = one.spec.endedBy ? `ended by ${one.spec.endedBy}` : one.active(now) ? "holds" : "over";
    list.push({ at: one.createdAt, policy: "", what, result, by: one.spec.requestedBy ?? "", reason: one.spec.reason });
  }
  return list.sort((a, b) => a.at < b.at ? 1 : a.at > b.at ? -1 : a.what < b.what ? -1 : 1);
}

/** Whom a release's fix has not reached: nodes that do not run the target, and for how long it has been published. */
export function exposure(policy, nodes) {
  const target = policy.status.target;
  if (!target) return null;
  const behind = nodes.filter(node => node.booted !== target.version).length;
  return { behind, severity: target.severity, since: target.publishedAt };
}

export const count = (number, one) => `${number} ${one}${number === 1 ? "" : "s"}`;
