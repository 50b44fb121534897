//! The client's calls about channels and rollouts.

use reqwest::Method;

use super::{Client, ClientError, page, segment};
use crate::{
    Channel, ChannelList, ChannelRequest, Rollout, RolloutList, RolloutPrice, RolloutRequest,
};

impl Client {
    /// The channels of an image.
    pub async fn channels(&self, image: &str) -> Result<Vec<Channel>, ClientError> {
        let path = format!("/v1/images/{}/channels", segment(image)?);
        let list: ChannelList = self.get(&path).await?;
        Ok(list.channels)
    }

    /// Puts a channel at a version; it is made if it is not there.
    pub async fn set_channel(
        &self,
        image: &str,
        channel: &str,
        request: &ChannelRequest,
    ) -> Result<Channel, ClientError> {
        let (image, channel) = (segment(image)?, segment(channel)?);
        let path = format!("/v1/images/{image}/channels/{channel}");
        self.with(Method::PUT, &path, request).await
    }

    /// Removes a channel that no pool follows.
    pub async fn delete_channel(&self, image: &str, channel: &str) -> Result<(), ClientError> {
        let (image, channel) = (segment(image)?, segment(channel)?);
        let path = format!("/v1/images/{image}/channels/{channel}");
        self.send(self.request(Method::DELETE, &path)).await?;
        Ok(())
    }

    /// What a rollout would cost; nothing is begun.
    pub async fn price(&self, request: &RolloutRequest) -> Result<RolloutPrice, ClientError> {
        self.with(Method::POST, "/v1/rollouts/price", request).await
    }

    /// Begins a rollout.
    pub async fn start_rollout(&self, request: &RolloutRequest) -> Result<Rollout, ClientError> {
        self.with(Method::POST, "/v1/rollouts", request).await
    }

    /// All rollouts that are remembered, newest first.
    pub async fn rollouts(&self) -> Result<Vec<Rollout>, ClientError> {
        let mut all = Vec::new();
        let mut next: Option<u64> = None;
        loop {
            let list: RolloutList = self.get(&page("/v1/rollouts", "before", &next)).await?;
            all.extend(list.rollouts);
            next = list.next;
            if next.is_none() {
                return Ok(all);
            }
        }
    }

    /// One rollout.
    pub async fn rollout(&self, id: u64) -> Result<Rollout, ClientError> {
        self.get(&format!("/v1/rollouts/{id}")).await
    }

    /// Pauses a rollout.
    pub async fn pause_rollout(&self, id: u64) -> Result<Rollout, ClientError> {
        self.steer(id, "pause").await
    }

    /// Lets a rollout go on.
    pub async fn resume_rollout(&self, id: u64) -> Result<Rollout, ClientError> {
        self.steer(id, "resume").await
    }

    /// Turns a rollout back.
    pub async fn abort_rollout(&self, id: u64) -> Result<Rollout, ClientError> {
        self.steer(id, "abort").await
    }

    async fn steer(&self, id: u64, how: &str) -> Result<Rollout, ClientError> {
        let path = format!("/v1/rollouts/{id}/{how}");
        self.json(self.request(Method::POST, &path)).await
    }
}
