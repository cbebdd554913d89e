//! What a process of the sandbox may do: no capability, bounded resources, Landlock.

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use crate::Limits;
use crate::missing::Missing;

const LANDLOCK_FIX: &str =
    "use a kernel from 5.13 on with Landlock enabled (`lsm=landlock,...` on its command line)";

/// Takes every capability and most of the machine away, for good.
pub(super) fn confine(limits: &Limits) -> Result<(), Missing> {
    set_limits(limits)?;
    drop_capabilities()?;
    rustix::thread::set_no_new_privs(true).map_err(|error| Missing::step("no_new_privs", error))?;
    restrict_files().map_err(|error| Missing::new("Landlock", error, LANDLOCK_FIX))
}

fn set_limits(limits: &Limits) -> Result<(), Missing> {
    let fixed = [
        (Resource::Core, 0),
        (Resource::Data, limits.memory_bytes),
        (Resource::Fsize, limits.disk_bytes),
        (Resource::Memlock, 64 << 10),
        (Resource::Msgqueue, 64 << 10),
        (Resource::Nice, 0),
        (Resource::Nofile, limits.open_files),
        (Resource::Nproc, limits.processes),
        (Resource::Rtprio, 0),
        (Resource::Sigpending, 4096),
    ];
    for (resource, most) in fixed {
        // An ordinary user cannot raise what it was given; then the lower of both holds.
        let most = rustix::process::getrlimit(resource)
            .maximum
            .map_or(most, |given| given.min(most));
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        rustix::process::setrlimit(resource, limit)
            .map_err(|error| Missing::step(&format!("the limit {resource:?}"), error))?;
    }
    Ok(())
}

fn drop_capabilities() -> Result<(), Missing> {
    let step = |error: rustix::io::Errno| Missing::step("an end to capabilities", error);
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The first number that this kernel does not know.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(step(error)),
        }
    }
    rustix::thread::clear_ambient_capability_set().map_err(step)?;
    let locked = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    rustix::thread::set_capabilities_secure_bits(locked).map_err(step)?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    rustix::thread::set_capabilities(None, sets).map_err(step)
}

/// Reading and executing programs, reading /proc, using devices, everything in the writable places; nothing else.
fn restrict_files() -> Result<(), RulesetError> {
    let newest = ABI::V6;
    let all = AccessFs::from_all(newest);
    let read = AccessFs::from_read(newest);
    let look: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let device: BitFlags<AccessFs> =
        AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev | AccessFs::ReadDir;
    let status = Ruleset::default()
        // The first version is required; what newer kernels can forbid beside it is forbidden where it can be.
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::from_all(newest))?
        .create()?
        .add_rules(path_beneath_rules(
            [
                "/usr", "/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin",
            ],
            read,
        ))?
        .add_rules(path_beneath_rules(["/"], AccessFs::ReadDir))?
        .add_rules(path_beneath_rules(["/etc", "/proc"], look))?
        .add_rules(path_beneath_rules(["/dev"], device))?
        .add_rules(path_beneath_rules(["/workspace", "/tmp", "/dev/shm"], all))?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        // HardRequirement has refused already; this arm keeps the promise if the crate's meaning should change.
        return Err(RulesetError::CreateRuleset(
            landlock::CreateRulesetError::MissingHandledAccess,
        ));
    }
    Ok(())
}

/// Puts a process one Landlock domain below pid 1, so that it can neither trace nor signal it, and nobody can undo it.
pub(crate) fn nest() -> Result<(), RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::MakeBlock)?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .restrict_self()
        .map(drop)
}

/// The newest version of Landlock that this kernel offers, as far as we use them.
pub(crate) fn landlock_abi() -> Option<ABI> {
    [ABI::V6, ABI::V5, ABI::V4, ABI::V3, ABI::V2, ABI::V1]
        .into_iter()
        .find(|abi| {
            Ruleset::default()
                .set_compatibility(CompatLevel::HardRequirement)
                .handle_access(AccessFs::from_all(*abi))
                .and_then(|ruleset| {
                    if *abi >= ABI::V6 {
                        ruleset.scope(Scope::from_all(*abi))
                    } else {
                        Ok(ruleset)
                    }
                })
                .and_then(Ruleset::create)
                .is_ok()
        })
}
