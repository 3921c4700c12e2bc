//! What "running a pod" means on a simulated machine: nothing for most pods, a process for those that a test cares
//! about.

use std::net::IpAddr;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;

/// Where a kubelet hands its pods. All methods may be called again for a pod that is already in that state.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Whether this pod is more than its record in the API: then the kubelet fetches its service account token.
    fn runs(&self, pod: &Pod) -> bool;

    /// Starts the pod's containers with its service account token, as mounted into a real one. Returns when they are
    /// ready.
    ///
    /// # Errors
    /// A sentence that ends up in the container's status; the kubelet tries again.
    async fn start(&self, pod: &Pod, token: &str) -> Result<(), String>;

    /// Where the pod is reached, once it was started; shown in its status. Always the same for one pod.
    fn address(&self, _pod: &Pod) -> Option<IpAddr> {
        None
    }

    /// Ends the pod's containers within its grace period.
    async fn stop(&self, pod: &Pod);

    /// The machine went down: whatever ran on it is gone at once.
    async fn power_off(&self, node: &str);
}

/// All pods are records only.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoContainers;

#[async_trait]
impl Runtime for NoContainers {
    fn runs(&self, _pod: &Pod) -> bool {
        false
    }

    async fn start(&self, _pod: &Pod, _token: &str) -> Result<(), String> {
        Ok(())
    }

    async fn stop(&self, _pod: &Pod) {}

    async fn power_off(&self, _node: &str) {}
}
