//! Searches by words find the same on both engines: conversations in many languages, and queries made of what stands in
//! them.

use axum::http::Method;
use serde_json::json;

use super::values::{Dice, encoded};
use super::{OPERATIONS, Operation, Persona, Side, setting, shown};
use crate::app::Engine;
use crate::client::text;
use chatstore_core::clock::Ctx;

const SESSIONS: usize = 40;

/// Sentences whose words meet in different languages, scripts and spellings.
const SENTENCES: [&str; 40] = [
    "What should I see in Lisbon in two days?",
    "Begin in Alfama, take tram 28E up to Graça, and walk down.",
    "The café near the station serves crème brûlée after 6 p.m.",
    "I don't think the O'Neill brothers' boat sails on Sundays.",
    "Die Straße nach Zürich ist gesperrt; nimm die Umleitung über Weiß.",
    "STRASSE NACH ZUERICH? Nein, Zürich!",
    "¿Dónde está la biblioteca? Está cerca de la estación, mañana abre a las 9.",
    "L'été à l'école, c'était là où naïveté rimait avec garçon.",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Ёжик и её друг ели еще ёлку.",
    "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία, ὁδὸς ΟΔΟΣ.",
    "東京都に住んでいます。京都にも行きたいです。",
    "ｶﾞｽ料金 ガス料金 を払いました。",
    "我喜欢机器学习和深度学习，也喜欢喝茶。",
    "안녕하세요, 한국어를 배워요. 세계 여행도 좋아해요.",
    "ฉันรักภาษาไทยและแมวของฉัน",
    "مرحبا بالعالم، مُحَمَّدٌ يشرب الشاي",
    "שָׁלוֹם לכולם, אני שותה תה",
    "मैं हिन्दी बोलता हूँ और चाय पीता हूँ।",
    "Đường phố Hà Nội rất đông; tôi uống trà.",
    "İstanbul'da ılık bir gün, ISPARTA değil.",
    "call parse_http_header() in src/net/http.rs:120 and retry",
    "The getUserName method of HTTPServerError returns OAuth2Token.",
    "upgrade to v1.2.3-rc1, not 1.2.30 or 1.23",
    "error E0432: unresolved import `super::folding`",
    "GPT-4 and gpt4 are the same; so are 3D, 3 d and 3-d",
    "nice 👍🏿 work 😀🎉 team 👩‍👩‍👧‍👦 🇩🇪",
    "tea tea tea and nothing but tea",
    "green tea, black tea, iced tea; the tea of Lisbon",
    "a very long sentence about tea that goes on and on so that the word tea counts less than elsewhere in it",
    "the red boat sails; the boat is red",
    "AND OR NOT NEAR(\"red boat\", 2) * - + :",
    "x",
    "",
    "  \t\n ",
    "line one\nline two\r\nline three",
    "\u{feff}mark and zero\u{200b}width and soft\u{ad}hyphen",
    "e\u{301}clair éclair ECLAIR",
    "ﬁne ﬂow ½ ² ① Ⅷ",
    "mixed 東京tokyo123タワー and snake_case_name",
];
const NAMES: [&str; 6] = ["Trip to Lisbon", "Harbour plans", "東京の旅", "Straße", "", "notes_2026"];

struct Corpus {
    dice: Dice,
    sessions: Vec<(String, Persona)>,
}

impl Corpus {
    fn sentence(&self) -> &'static str {
        self.dice.pick(&SENTENCES)
    }

    /// One sentence, or several as one text.
    fn content(&self) -> String {
        let sentences = if self.dice.percent(70) { 1 } else { 2 + self.dice.below(12) };
        (0..sentences).map(|_| self.sentence()).collect::<Vec<_>>().join(" ")
    }

    /// A part of a sentence, by characters: it may begin and end in the middle of words.
    fn piece(&self) -> String {
        let chars: Vec<char> = self.sentence().chars().collect();
        let from = self.dice.below(chars.len());
        let length = 1 + self.dice.below(12);
        chars.into_iter().skip(from).take(length).collect()
    }

    fn word(&self) -> &'static str {
        let words: Vec<&str> = self.sentence().split_whitespace().collect();
        words.get(self.dice.below(words.len())).copied().unwrap_or("tea")
    }

    fn query(&self) -> String {
        let dice = &self.dice;
        let term = || match dice.below(12) {
            0..5 => self.word().to_owned(),
            5 => self.word().to_uppercase(),
            6 => self.piece(),
            7 => format!("\"{}\"", self.piece()),
            8 => format!("{}*", self.word().chars().take(1 + dice.below(4)).collect::<String>()),
            9 => format!("-{}", self.word()),
            10 => {
                dice.pick(&["role:user", "role:Assistant", "in:lisbon", "in:東京", "in:\"harbour plans\""]).to_owned()
            }
            _ => dice.pick(&["tea", "the", "a", "茶", "ช", "-\"red boat\"", "\"", "*", "\"tea", "in:"]).to_owned(),
        };
        (0..1 + dice.below(3)).map(|_| term()).collect::<Vec<_>>().join(" ")
    }

    /// A search in one of its forms.
    fn search(&self) -> Operation {
        let dice = &self.dice;
        let (session, owner) = &self.sessions[dice.below(self.sessions.len())];
        let persona = dice.pick(&[Persona::Operator, Persona::Alice, Persona::Bob, Persona::Stranger, *owner]);
        let query = encoded(&self.query());
        let mut path = match dice.below(4) {
            0 => format!("/api/v1/sessions/{session}/search?q={query}"),
            1 => format!("/api/v1/search?q={query}&session_id={session}"),
            _ => format!("/api/v1/search?q={query}"),
        };
        for (chance, parameter) in [
            (50, format!("limit={}", 1 + dice.below(30))),
            (50, "mode=text".to_owned()),
            (15, "group_by_session=true".to_owned()),
            (15, "role=assistant".to_owned()),
            (10, "user_id=alice".to_owned()),
            (10, "metadata[topic]=tea".to_owned()),
            (15, format!("context_before={}&context_after={}", dice.below(3), dice.below(3))),
            (10, format!("created_after={}", encoded(&dice.time()))),
            (10, format!("created_before={}", encoded(&dice.time()))),
        ] {
            if dice.percent(chance) {
                path.push_str(&format!("&{parameter}"));
            }
        }
        Operation { persona, method: Method::GET, path, cursors: None, headers: Vec::new(), body: None }
    }
}

fn write(persona: Persona, method: Method, path: String, body: serde_json::Value) -> Operation {
    let headers = vec![("content-type", "application/json".to_owned())];
    Operation { persona, method, path, cursors: None, headers, body: Some(body.to_string()) }
}

/// Fills both sides, edits and deletes some, and asks both the same.
#[tokio::test]
async fn both_engines_find_the_same() {
    let seed = setting("DIFFERENTIAL_SEED").unwrap_or_else(|| u64::from(u32::from_be_bytes(Ctx::system().random())));
    let searches = setting("DIFFERENTIAL_OPERATIONS").unwrap_or(OPERATIONS) / 3;
    let sides = tokio::join!(Side::start(Engine::Sqlite, seed), Side::start(Engine::Postgres, seed));
    let both = async |operation: &Operation| {
        let answers = tokio::join!(sides.0.send(operation, 0), sides.1.send(operation, 1));
        let (left, right) = (answers.0.comparable(), answers.1.comparable());
        assert!(
            left == right && answers.0.status < 300,
            "DIFFERENTIAL_SEED={seed}: {operation:?}\n\nSQLite: {}\n\nPostgreSQL: {}",
            shown(&left),
            shown(&right)
        );
        answers
    };
    let mut corpus = Corpus { dice: Dice::new(seed), sessions: Vec::new() };
    for _ in 0..SESSIONS {
        let persona = corpus.dice.pick(&[Persona::Operator, Persona::Alice, Persona::Bob, Persona::Stranger]);
        let body = json!({"session_name": corpus.dice.pick(&NAMES)});
        let (session, _) = both(&write(persona, Method::POST, "/api/v1/sessions".to_owned(), body)).await;
        let id = text(&serde_json::from_str::<serde_json::Value>(&session.body).unwrap()["session_id"]);
        let path = format!("/api/v1/sessions/{id}/messages");
        let message = |_| {
            let role = corpus.dice.pick(&["user", "assistant"]);
            let metadata = if corpus.dice.percent(30) { json!({"topic": "tea"}) } else { json!({}) };
            json!({"content": corpus.content(), "role": role, "metadata": metadata})
        };
        let messages: Vec<_> = (0..1 + corpus.dice.below(30)).map(message).collect();
        let (stored, _) = both(&write(persona, Method::POST, path, json!(messages))).await;
        let stored: Vec<serde_json::Value> = serde_json::from_str(&stored.body).unwrap();
        for message in stored {
            let path = format!("/api/v1/messages/{}", text(&message["message_id"]));
            match corpus.dice.below(20) {
                0 => both(&write(persona, Method::DELETE, path, json!({}))).await,
                1 => both(&write(persona, Method::PATCH, path, json!({"content": corpus.content()}))).await,
                _ => continue,
            };
        }
        if corpus.dice.percent(8) {
            both(&write(persona, Method::DELETE, format!("/api/v1/sessions/{id}"), json!({}))).await;
        } else {
            corpus.sessions.push((id, persona));
        }
    }
    let (mut hits, mut pages) = (0, 0);
    for _ in 0..searches {
        let mut operation = corpus.search();
        loop {
            let answers = tokio::join!(sides.0.send(&operation, 0), sides.1.send(&operation, 1));
            let (left, right) = (answers.0.comparable(), answers.1.comparable());
            assert!(
                left == right && answers.0.status < 500,
                "DIFFERENTIAL_SEED={seed}: {operation:?}\n\nSQLite: {}\n\nPostgreSQL: {}",
                shown(&left),
                shown(&right)
            );
            hits += left.matches("\"score\"").count();
            let (Some((path, ours)), Some((_, theirs))) = (answers.0.next(), answers.1.next()) else { break };
            pages += 1;
            operation.path = path.to_owned();
            operation.cursors = Some([ours, theirs].map(ToOwned::to_owned));
        }
    }
    assert!(hits > 500 && pages > 50, "{hits} hits on {pages} further pages are too few to tell anything");
}
