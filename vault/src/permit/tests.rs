use claviger_vault_protocol::{Binding, CredentialKind, Destination, GrantId, Slot};

use super::*;

fn credential() -> Credential {
    Credential {
        id: CredentialId::from("vcrd_1"),
        collection: "vlt_local".to_owned(),
        name: "tracker".to_owned(),
        kind: CredentialKind::Bearer,
        binding: Binding {
            destination: Destination::parse("https://api.example.com").unwrap(),
            methods: vec!["GET".to_owned(), "POST".to_owned()],
            path_prefixes: vec!["/v1".to_owned()],
            slot: Slot::Header {
                name: "authorization".to_owned(),
                prefix: "Bearer ".to_owned(),
            },
        },
        variable: None,
        version: 1,
        created_at_ms: 0,
        rotated_at_ms: 0,
        archived_at_ms: None,
        uses: 0,
        last_used_at_ms: None,
        metadata: serde_json::Value::Null,
    }
}

fn asked() -> AuthorizeUse {
    AuthorizeUse {
        request_id: "r".to_owned(),
        session: "sesn_1".to_owned(),
        epoch: 3,
        grant: GrantId::from("grant_1"),
        tool: "tracker".to_owned(),
        tool_hash: "aa".to_owned(),
        destination: Destination::parse("https://api.example.com").unwrap(),
        method: "POST".to_owned(),
        path: "/v1/issues".to_owned(),
        digest: String::new(),
    }
}

struct Case {
    asked: AuthorizeUse,
    credential: Option<Credential>,
    permit: Option<Permit>,
    tools: Vec<String>,
    /// Where they differ from the charter's of now.
    opened_tools: Option<Vec<String>>,
    standing: Standing,
    by_tool_only: bool,
    is_model: bool,
    is_seat: bool,
    has_grant: bool,
    now_ms: u64,
}

impl Case {
    /// Everything in order: this use is permitted.
    fn good() -> Self {
        Self {
            asked: asked(),
            credential: Some(credential()),
            permit: Some(Permit {
                tool: "tracker".to_owned(),
                tool_hash: "aa".to_owned(),
                credential: CredentialId::from("vcrd_1"),
                principals: vec![Principal::key("key_1")],
                methods: vec!["POST".to_owned()],
            }),
            tools: vec!["tracker".to_owned()],
            opened_tools: None,
            standing: Standing::Accepted,
            by_tool_only: false,
            is_model: false,
            is_seat: false,
            has_grant: true,
            now_ms: 99,
        }
    }

    fn decide(&self) -> Result<(), &'static str> {
        let (id, principal) = (CredentialId::from("vcrd_1"), Principal::key("key_1"));
        let grant = GrantFacts {
            credential: self.credential.as_ref(),
            credential_id: &id,
            by_tool_only: self.by_tool_only,
            is_model: self.is_model,
        };
        let facts = Facts {
            now_ms: self.now_ms,
            standing: self.standing,
            newest_epoch: 3,
            expires_at_ms: 100,
            is_seat: self.is_seat,
            principal: &principal,
            tools: &self.tools,
            opened_tools: self.opened_tools.as_ref().unwrap_or(&self.tools),
            grant: self.has_grant.then_some(grant),
            permit: self.permit.as_ref(),
        };
        decide(&self.asked, &facts)
    }
}

fn permit(case: &mut Case) -> &mut Permit {
    case.permit.as_mut().unwrap()
}

#[test]
fn a_use_within_everything_is_permitted() {
    assert_eq!(Case::good().decide(), Ok(()));
    assert_eq!(
        Case {
            is_seat: true,
            ..Case::good()
        }
        .decide(),
        Ok(())
    );
    assert_eq!(
        Case {
            by_tool_only: true,
            tools: vec!["*".to_owned()],
            ..Case::good()
        }
        .decide(),
        Ok(())
    );
    let mut anyone = Case::good();
    permit(&mut anyone).principals = vec![Principal::from("*".to_owned())];
    assert_eq!(anyone.decide(), Ok(()));
}

#[test]
fn each_thing_out_of_order_refuses_with_its_own_code() {
    let refused = |reason: &str, change: &dyn Fn(&mut Case)| {
        let mut case = Case::good();
        change(&mut case);
        assert_eq!(case.decide(), Err(reason));
    };
    refused("epoch_stale", &|case| case.asked.epoch = 2);
    refused("opening_not_found", &|case| case.asked.epoch = 4);
    refused("opening_void", &|case| case.standing = Standing::Ended);
    refused("opening_not_accepted", &|case| {
        case.standing = Standing::NotAccepted;
    });
    refused("charter_expired", &|case| case.now_ms = 100);
    refused("grant_not_found", &|case| case.has_grant = false);
    refused("credential_not_found", &|case| case.credential = None);
    refused("credential_archived", &|case| {
        case.credential.as_mut().unwrap().archived_at_ms = Some(1);
    });
    refused("tool_not_permitted", &|case| case.permit = None);
    refused("tool_not_permitted", &|case| case.tools = vec![]);
    refused("tool_not_permitted", &|case| {
        case.tools = vec!["other".to_owned()];
    });
    refused("tool_not_permitted", &|case| {
        permit(case).tool = "other".to_owned();
    });
    refused("tool_not_permitted", &|case| {
        permit(case).credential = CredentialId::from("vcrd_2");
    });
    refused("tool_changed", &|case| {
        case.asked.tool_hash = "bb".to_owned();
    });
    refused("principal_not_permitted", &|case| {
        permit(case).principals = vec![Principal::key("key_2")];
    });
    refused("destination_not_bound", &|case| {
        case.asked.destination = Destination::parse("https://evil.example.com").unwrap();
    });
    refused("destination_not_bound", &|case| {
        case.asked.destination = Destination::parse("http://api.example.com").unwrap();
    });
    refused("method_not_bound", &|case| {
        case.asked.method = "DELETE".to_owned();
    });
    refused("path_not_bound", &|case| {
        case.asked.path = "/v1x".to_owned();
    });
    refused("method_not_permitted", &|case| {
        case.asked.method = "GET".to_owned();
    });
}

#[test]
fn a_charter_that_grew_widens_no_live_opening_and_one_that_shrank_narrows_it() {
    let with = |now: &str, opened: &str| {
        let mut case = Case::good();
        case.tools = vec![now.to_owned()];
        case.opened_tools = Some(vec![opened.to_owned()]);
        case.decide()
    };
    assert_eq!(with("*", "tracker"), Ok(()));
    assert_eq!(with("tracker", "*"), Ok(()));
    assert_eq!(with("*", "other"), Err("tool_not_permitted"));
    assert_eq!(with("other", "*"), Err("tool_not_permitted"));
}

#[test]
fn the_model_grant_serves_the_model_route_alone() {
    let with = |tool: &str, is_model: bool| {
        let mut case = Case {
            is_model,
            ..Case::good()
        };
        case.asked.tool = tool.to_owned();
        case.decide()
    };
    assert_eq!(with("model", true), Ok(()));
    assert_eq!(with("model", false), Err("tool_not_permitted"));
    assert_eq!(with("egress", true), Err("tool_not_permitted"));
    assert_eq!(with("tracker", true), Err("tool_not_permitted"));
}

#[test]
fn the_gateway_spends_what_the_charter_opened_and_not_what_a_tool_brought_along() {
    let with = |by_tool_only: bool, is_seat: bool| {
        let mut case = Case {
            by_tool_only,
            is_seat,
            permit: None,
            tools: vec![],
            ..Case::good()
        };
        case.asked.tool = "egress".to_owned();
        case.decide()
    };
    assert_eq!(with(false, false), Ok(()));
    assert_eq!(with(true, false), Err("tool_not_permitted"));
    assert_eq!(with(false, true), Err("tool_not_permitted"));
}

proptest::proptest! {
    /// Whatever is asked of an empty table is refused.
    #[test]
    fn nothing_is_permitted_by_default(tool in "[a-z]{1,8}", path in "/[a-z/]{0,12}", method in "[A-Z]{1,6}") {
        let mut case = Case { permit: None, ..Case::good() };
        case.tools = vec!["*".to_owned()];
        case.asked.tool = tool.clone();
        case.asked.path = path;
        case.asked.method = method;
        proptest::prop_assume!(tool != MODEL && tool != EGRESS);
        proptest::prop_assert_eq!(case.decide(), Err("tool_not_permitted"));
    }
}
