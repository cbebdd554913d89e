//! Typed clients, one per kind of connection. A client has exactly its role's verbs; the vault
//! checks again.

use std::time::Duration;

use crate::admin::{
    AuditLines, AuthenticateKey, CreateKey, CreatedKey, CredentialRow, Credentials, Init,
    Initialized, KeyHolder, List, Nothing, OfCredential, PermitTool, Permits, Put, ReadAudit,
    RevokeTool, Rotate, Scan, Scanned, Status, Unseal,
};
use crate::charter::{Charter, Registered};
use crate::error::WireError;
use crate::opening::{Accept, Accepted, EndOpening, OpenSeat, OpenSession, Opening};
use crate::present::{At, Call, Called, NameSandbox, Present, Tools};
use crate::usage::{AuthorizeUse, Authorized, RecordOutcome, Report};
use crate::wire::Link;

/// How long a verb may take before the caller gives up.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a tool call may take.
const CALL_DEADLINE: Duration = Duration::from_secs(600);

macro_rules! client {
    ($(#[$doc:meta])* $name:ident { $($(#[$verb_doc:meta])* $verb:ident ( $query:ty ) -> $answer:ty, $how:ident, $deadline:expr;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(pub Link);

        impl $name {
            $(
                $(#[$verb_doc])*
                ///
                /// # Errors
                /// [`WireError`]: refused, disconnected, timed out or malformed.
                pub async fn $verb(&self, query: &$query) -> Result<$answer, WireError> {
                    self.0.$how(stringify!($verb), query, $deadline).await
                }
            )*
        }
    };
}

client!(
    /// The operator's connection, by `admin.sock`.
    AdminVault {
        /// Says what state the vault is in.
        status(Nothing) -> Status, call, DEADLINE;
        /// Creates the store.
        init(Init) -> Initialized, call, DEADLINE;
        /// Unseals.
        unseal(Unseal) -> Status, call, DEADLINE;
        /// Seals: keys are wiped, uses stop.
        seal(Nothing) -> Status, call, DEADLINE;
        /// Gives a new credential.
        put(Put) -> CredentialRow, call, DEADLINE;
        /// Gives a new version.
        rotate(Rotate) -> CredentialRow, call, DEADLINE;
        /// Ends a credential's use; the record stays.
        archive(OfCredential) -> CredentialRow, call, DEADLINE;
        /// Deletes a credential and its sealed secret.
        delete(OfCredential) -> CredentialRow, call, DEADLINE;
        /// Lists credentials without their secrets.
        list(List) -> Credentials, call, DEADLINE;
        /// Shows one credential without its secret.
        show(OfCredential) -> CredentialRow, call, DEADLINE;
        /// Adds or replaces a tool's permit.
        permit_tool(PermitTool) -> Permits, call, DEADLINE;
        /// Takes a tool's permit back.
        revoke_tool(RevokeTool) -> Permits, call, DEADLINE;
        /// Lists permits.
        list_permits(Nothing) -> Permits, call, DEADLINE;
        /// Makes an API key.
        create_key(CreateKey) -> CreatedKey, call, DEADLINE;
        /// Reads the audit log; the reading is recorded.
        read_audit(ReadAudit) -> AuditLines, call, DEADLINE;
        /// Searches the vault's own memory; only in a demo's home.
        scan(Scan) -> Scanned, call, DEADLINE;
    }
);

client!(
    /// The api's connection.
    ApiVault {
        /// Registers a session's charter.
        register_charter(Charter) -> Registered, call_again, DEADLINE;
        /// Gives a new credential into a workspace's collection.
        put(Put) -> CredentialRow, call, DEADLINE;
        /// Gives a new version.
        rotate(Rotate) -> CredentialRow, call, DEADLINE;
        /// Ends a credential's use.
        archive(OfCredential) -> CredentialRow, call, DEADLINE;
        /// Deletes a credential.
        delete(OfCredential) -> CredentialRow, call, DEADLINE;
        /// Lists credentials.
        list(List) -> Credentials, call_again, DEADLINE;
        /// Shows one credential.
        show(OfCredential) -> CredentialRow, call_again, DEADLINE;
        /// Says who holds an API key.
        authenticate_key(AuthenticateKey) -> KeyHolder, call_again, DEADLINE;
        /// Says what state the vault is in.
        status(Nothing) -> Status, call_again, DEADLINE;
    }
);

client!(
    /// A harness's connection.
    HarnessVault {
        /// Opens a session's charter for one epoch.
        open_session(OpenSession) -> Opening, call_again, DEADLINE;
        /// Ends an opening.
        end_opening(EndOpening) -> Nothing, call_again, DEADLINE;
    }
);

client!(
    /// The connection of a tools instance; its greeting is `register_tools`.
    ToolsVault {
        /// Takes an opening, once.
        accept(Accept) -> Accepted, call_again, DEADLINE;
        /// Opens a direct MCP client's seat.
        open_seat(OpenSeat) -> Opening, call_again, DEADLINE;
        /// Asks for one use; durable intent before the answer.
        authorize_use(AuthorizeUse) -> Authorized, call_again, DEADLINE;
        /// Records how a use ended.
        record_outcome(RecordOutcome) -> Nothing, call_again, DEADLINE;
        /// Records something refused before any use.
        report(Report) -> Nothing, call_again, DEADLINE;
        /// Ends a seat.
        end_opening(EndOpening) -> Nothing, call_again, DEADLINE;
        /// Lists permits: which tool definitions are in force.
        list_permits(Nothing) -> Permits, call_again, DEADLINE;
        /// Says who holds an API key.
        authenticate_key(AuthenticateKey) -> KeyHolder, call_again, DEADLINE;
    }
);

client!(
    /// A harness's connection to mcp-tools.
    ToolsLink {
        /// Hands an opening's ciphertexts over.
        present(Present) -> At, call, DEADLINE;
        /// Takes a session back.
        withdraw(At) -> Nothing, call, DEADLINE;
        /// Has a sandbox's listeners served.
        name_sandbox(NameSandbox) -> Nothing, call, DEADLINE;
        /// Lists a session's tools.
        list_tools(At) -> Tools, call_again, DEADLINE;
        /// Calls a tool.
        call(Call) -> Called, call, CALL_DEADLINE;
    }
);
