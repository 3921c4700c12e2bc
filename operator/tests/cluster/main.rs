//! The operator against a real control plane: real API server with RBAC and admission policies, real scheduler, real
//! controllers, real eviction with real budgets, a real signed repository over https. Only the machines are simulated.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, unreachable_pub)]

mod agent;
mod audience;
mod audit_log;
mod autoscalers;
mod bad_input;
mod break_glass;
mod docs;
mod drain;
mod facts;
mod handover;
mod health;
mod hooks;
mod installation;
mod kubectl;
mod live;
mod monitoring;
mod object_gates;
mod places;
mod proxy;
mod reboots;
mod repository;
mod rights;
mod rollout;
mod startup;
mod trouble;
mod unreadable;
mod workloads;
mod world;
