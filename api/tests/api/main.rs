//! The api role over real listeners, the real session role and a scripted vault.

#[cfg(test)]
mod agents;
#[cfg(test)]
mod canary;
#[cfg(test)]
mod environments;
#[cfg(test)]
mod events;
#[cfg(test)]
mod gate;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod stream;
#[cfg(test)]
mod support;
#[cfg(test)]
mod vaults;
