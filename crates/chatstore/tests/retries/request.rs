//! The kinds of requests that make something, each with texts that no other request has.

use serde_json::{Value, json};

use crate::support::{API_KEY, Random};

/// A session that is there from the start, under the names it has on both surfaces.
pub(crate) struct Place {
    /// `/api/v1/sessions/…/messages`
    pub(crate) messages: String,
    /// `/v1/conversations/…/items`
    pub(crate) items: String,
    /// The digits of its id.
    pub(crate) digits: String,
}

impl Place {
    pub(crate) fn of(messages: String) -> Self {
        let id = messages.split('/').nth(4).unwrap();
        let digits = digits(id);
        Self { items: format!("/v1/conversations/conv_{digits}/items"), digits, messages }
    }
}

/// How a request is known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// By its `Idempotency-Key`.
    Key,
    /// By the ids that the client gave its messages.
    Ids,
    /// By its body, from a client that counts its retries as OpenAI's SDKs do.
    Body,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Session,
    Message,
    Messages,
    NamedMessage,
    Conversation,
    Items,
    NamedItems,
    ItemsFromSdk,
}

const KINDS: [Kind; 8] = [
    Kind::Session,
    Kind::Message,
    Kind::Messages,
    Kind::NamedMessage,
    Kind::Conversation,
    Kind::Items,
    Kind::NamedItems,
    Kind::ItemsFromSdk,
];

impl Kind {
    pub(crate) fn name(self) -> Name {
        match self {
            Self::Session | Self::Message | Self::Messages | Self::Conversation | Self::Items => Name::Key,
            Self::NamedMessage | Self::NamedItems => Name::Ids,
            Self::ItemsFromSdk => Name::Body,
        }
    }

    fn makes_session(self) -> bool {
        matches!(self, Self::Session | Self::Conversation)
    }
}

/// One request, sent as often as it takes.
pub(crate) struct Request {
    /// Its `X-Request-Id`, its key if it has one, and what its texts begin with.
    pub(crate) id: String,
    pub(crate) kind: Kind,
    /// Which of the sessions it appends to; none if it makes one.
    pub(crate) place: Option<usize>,
    target: String,
    body: String,
    /// What its messages say, in their order.
    pub(crate) texts: Vec<String>,
}

impl Request {
    pub(crate) fn draw(id: String, random: &mut Random, places: &[Place]) -> Self {
        let mut below = |end: usize| usize::try_from(random.below(end as u64)).unwrap();
        let kind = KINDS[below(KINDS.len())];
        let place = (!kind.makes_session()).then(|| below(places.len()));
        let count = match kind {
            Kind::Session => 0,
            Kind::Message | Kind::NamedMessage => 1,
            _ => 1 + below(4),
        };
        let texts: Vec<String> =
            (0..count).map(|n| format!("{id} {n} of {count} {}", "x".repeat(below(200)))).collect();
        let items = || -> Value {
            let item = |text| json!({"type": "message", "role": "user", "content": text});
            texts.iter().map(item).collect()
        };
        let body = match kind {
            Kind::Session if below(2) == 0 => json!({"session_name": id, "user_id": format!("user {}", below(9))}),
            Kind::Session => json!({"session_name": id}),
            Kind::Message => json!({"content": texts[0]}),
            Kind::Messages => texts.iter().map(|text| json!({"content": text})).collect(),
            Kind::NamedMessage => json!({"content": texts[0], "external_id": id}),
            Kind::Conversation => json!({"metadata": {"request": id}, "items": items()}),
            Kind::Items | Kind::ItemsFromSdk => json!({"items": items()}),
            Kind::NamedItems => {
                let mut items = items();
                for (n, item) in items.as_array_mut().unwrap().iter_mut().enumerate() {
                    item["id"] = format!("msg_{id}-{n}").into();
                }
                json!({"items": items})
            }
        };
        let target = match (kind, place.map(|place| &places[place])) {
            (Kind::Session, _) => "/api/v1/sessions",
            (Kind::Conversation, _) => "/v1/conversations",
            (Kind::Message | Kind::Messages | Kind::NamedMessage, Some(place)) => &place.messages,
            (_, place) => &place.unwrap().items,
        };
        Self { id, kind, place, target: target.to_owned(), body: body.to_string(), texts }
    }

    /// What is sent after `tries` others.
    pub(crate) fn bytes(&self, tries: usize) -> String {
        let Self { id, target, body, .. } = self;
        let name = match self.kind.name() {
            Name::Key => format!("idempotency-key: {id}\r\n"),
            Name::Ids => String::new(),
            Name::Body => format!("x-stainless-retry-count: {tries}\r\n"),
        };
        format!(
            "POST {target} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {API_KEY}\r\nx-request-id: {id}\r\n{name}\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    /// What an answer says was made: the digits of a session's id, or ids of messages.
    pub(crate) fn made(&self, answer: &[u8]) -> Vec<String> {
        let answer: Value = serde_json::from_slice(answer).unwrap();
        let id = |value: &Value| value.as_str().unwrap().to_owned();
        match self.kind {
            Kind::Session => vec![digits(&id(&answer["session_id"]))],
            Kind::Conversation => vec![digits(&id(&answer["id"]))],
            Kind::Message | Kind::NamedMessage => vec![digits(&id(&answer["message_id"]))],
            Kind::Messages => answer.as_array().unwrap().iter().map(|made| digits(&id(&made["message_id"]))).collect(),
            Kind::Items | Kind::ItemsFromSdk => items(&answer).map(|item| digits(&id(&item["id"]))).collect(),
            Kind::NamedItems => items(&answer).map(|item| id(&item["id"])).collect(),
        }
    }
}

fn items(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["data"].as_array().unwrap().iter()
}

/// What an id says on both surfaces.
pub(crate) fn digits(id: &str) -> String {
    id.rsplit('_').next().unwrap().replace('-', "")
}
