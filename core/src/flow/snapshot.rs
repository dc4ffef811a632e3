//! Flows as plain data.

use core::net::{IpAddr, Ipv4Addr};

use super::{Stage, UdpFlow};
use crate::flow::key::FlowKey;
use crate::id::{BackendId, FlowId};
use crate::snapshot::ImageError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{FlowImage, KeyImage, RestingImage, StageImage, WayImage};

impl UdpFlow {
    /// What is known of a flow that is alive, in a slot; `None` of one that only rests.
    pub(crate) fn image(&self, slot: u32) -> Option<FlowImage> {
        let stage = match self.stage {
            Stage::Active => StageImage::Active,
            Stage::Follower => StageImage::Follower,
            Stage::Retired => StageImage::Retired,
            Stage::Resting | Stage::Quarantined => return None,
        };
        let is_alone = self.next_branch == FlowId::new(slot, self.generation);
        Some(FlowImage {
            slot,
            generation: self.generation,
            key: self.key().image(),
            backend: self.backend.index() as u32,
            stage,
            confirmed: self.confirmed,
            introduced: self.introduced,
            heard: self.heard,
            mirrored: self.mirrored,
            is_winner: self.is_winner,
            is_prompt: self.is_prompt,
            to_backend: self.to_backend,
            to_client: self.to_client,
            opened: self.opened,
            first_answer: self.answered.then_some(self.first_answer),
            deadline: self.deadline,
            next_branch: (!is_alone).then_some(self.next_branch.index() as u32),
        })
    }

    /// A flow that is alive, and goes on after itself in its ring until another is told.
    pub(crate) fn restored(image: &FlowImage) -> Result<Self, ImageError> {
        let answered = image.first_answer.is_some();
        let traffic = [image.to_backend, image.to_client];
        require!(answered || !image.confirmed, "a flow is confirmed before it is answered");
        require!(traffic.iter().all(|traffic| traffic.has_room()), "a flow's figures ran over");
        let FlowKey { client, local } = FlowKey::restored(&image.key);
        Ok(Self {
            client,
            local,
            deadline: image.deadline,
            to_backend: image.to_backend,
            generation: image.generation,
            backend: BackendId::new(image.backend as usize),
            stage: match image.stage {
                StageImage::Active => Stage::Active,
                StageImage::Follower => Stage::Follower,
                StageImage::Retired => Stage::Retired,
            },
            answered,
            confirmed: image.confirmed,
            introduced: image.introduced,
            heard: image.heard,
            mirrored: image.mirrored,
            is_winner: image.is_winner,
            is_prompt: image.is_prompt,
            to_client: image.to_client,
            opened: image.opened,
            first_answer: image.first_answer.unwrap_or(image.opened),
            next_branch: FlowId::new(image.slot, image.generation),
        })
    }

    /// What is known of a flow that has ended and kept its socket.
    pub(crate) const fn resting_image(&self, slot: u32) -> RestingImage {
        let backend = self.backend.index() as u32;
        RestingImage { slot, generation: self.generation, backend, until: self.deadline }
    }

    /// A flow that has ended, and whose socket is in quarantine.
    pub(crate) fn restored_quarantined(image: &RestingImage) -> Self {
        Self { stage: Stage::Quarantined, ..Self::restored_resting(image) }
    }

    /// A flow that rests. Of what it was, nothing matters any more.
    pub(crate) fn restored_resting(image: &RestingImage) -> Self {
        let nobody = KeyImage {
            ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: 0,
            way: WayImage::Direct { scope: 0 },
        };
        let id = FlowId::new(image.slot, image.generation);
        let backend = BackendId::new(image.backend as usize);
        let blank = Self::blank(&FlowKey::restored(&nobody), id, backend, image.until);
        Self { stage: Stage::Resting, ..blank }
    }
}
