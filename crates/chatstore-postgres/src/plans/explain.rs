//! Statements explained, as they come to their plans on our connections and behind a pooler.

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::PostgresOptions;
use crate::connect::Target;
use crate::params::Param;
use crate::pool::set_up;

/// How a statement comes to its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Planning {
    /// On our connections: without values, under their settings.
    Ours,
    /// On our connections, for its values.
    Once,
    /// Behind a pooler: for its values, under the settings of the server.
    Pooled,
}

/// A connection on which statements are explained.
pub(super) struct Planner {
    pub(super) planning: Planning,
    client: Client,
}

/// A statement that is prepared on its connection, and its values as text.
pub(super) struct Prepared {
    name: String,
    values: String,
}

impl Planner {
    pub(super) async fn connect(url: &str, planning: Planning) -> Self {
        let target = Target::parse(url).expect("the URL of a test is one");
        let client = target.connect(Duration::from_secs(10)).await.expect("the test's server answers");
        let settings = match planning {
            Planning::Ours => set_up(&PostgresOptions::new(url)),
            Planning::Once => {
                format!("{}; set plan_cache_mode = force_custom_plan", set_up(&PostgresOptions::new(url)))
            }
            // What an unnamed statement gets; here it has a name, so that it can be explained.
            Planning::Pooled => "set plan_cache_mode = force_custom_plan".to_owned(),
        };
        client.batch_execute(&settings).await.expect("the settings are known");
        Self { planning, client }
    }

    /// Prepares a statement with the types of its parameters.
    pub(super) async fn prepare(&self, name: impl Into<String>, sql: &str, params: &[Param<'_>]) -> Prepared {
        let prepared = Prepared { name: name.into(), values: self.values(params).await };
        let prepare = prepare(&prepared.name, sql, params);
        self.client.batch_execute(&prepare).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        prepared
    }

    /// The plan of a prepared statement.
    pub(super) async fn explain_prepared(&self, prepared: &Prepared) -> Explained {
        let Prepared { name, values } = prepared;
        self.explanation(&format!("explain (format json) execute {name}{values}")).await
    }

    /// The plan of a statement.
    pub(super) async fn explain(&self, sql: &str, params: &[Param<'_>]) -> Explained {
        self.explain_with("format json", sql, params).await
    }

    /// The plan of a statement, and what running it touched.
    pub(super) async fn run(&self, sql: &str, params: &[Param<'_>]) -> Explained {
        self.explain_with("analyze, buffers, timing off, format json", sql, params).await
    }

    async fn explain_with(&self, options: &str, sql: &str, params: &[Param<'_>]) -> Explained {
        let (prepare, values) = (prepare("explained", sql, params), self.values(params).await);
        let text = format!("{prepare}; explain ({options}) execute explained{values}; deallocate explained");
        self.explanation(&text).await
    }

    /// The plan of a statement whose values do not matter.
    pub(super) async fn explain_generic(&self, sql: &str) -> Explained {
        self.explanation(&format!("explain (generic_plan, format json) {sql}")).await
    }

    async fn explanation(&self, sql: &str) -> Explained {
        let answer = self.client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let row = answer.into_iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(ToOwned::to_owned),
            _ => None,
        });
        let text = row.expect("an explanation is a row");
        let json: Value = serde_json::from_str(&text).expect("an explanation is JSON");
        Explained { plan: json[0]["Plan"].clone() }
    }

    /// The values as `execute` takes them, written by the server.
    async fn values(&self, params: &[Param<'_>]) -> String {
        if params.is_empty() {
            return String::new();
        }
        let quoted: Vec<_> = (1..=params.len()).map(|n| format!("quote_nullable(${n})")).collect();
        let row = self.client.query_typed(&format!("select {}", quoted.join(", ")), params).await;
        let row = row.expect("values can be written").remove(0);
        let values: Vec<String> = (0..params.len()).map(|n| row.get(n)).collect();
        format!("({})", values.join(", "))
    }
}

fn prepare(name: &str, sql: &str, params: &[Param<'_>]) -> String {
    let types: Vec<_> = params.iter().map(|(_, of)| of.name()).collect();
    let types = if types.is_empty() { String::new() } else { format!("({})", types.join(", ")) };
    format!("prepare {name}{types} as {sql}")
}

/// A plan.
pub(super) struct Explained {
    plan: Value,
}

/// A step of a plan.
pub(super) struct Node<'a>(&'a Value);

impl Node<'_> {
    fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    pub(super) fn kind(&self) -> &str {
        self.text("Node Type")
    }

    /// The table it reads or writes; empty if it does neither.
    pub(super) fn table(&self) -> &str {
        self.text("Relation Name")
    }

    /// Whether it walks an index under a condition on this column.
    pub(super) fn walks_by(&self, column: &str) -> bool {
        // The condition of a bitmap stands in the step below as well.
        ["Index Cond", "Recheck Cond"].iter().any(|field| {
            let mut words = self.text(field).split(|c: char| !c.is_alphanumeric() && c != '_');
            words.any(|word| word == column)
        })
    }

    /// Whether it reads rows of a table.
    pub(super) fn reads(&self) -> bool {
        !self.table().is_empty() && self.kind().contains("Scan")
    }

    /// What the rows are sorted by already.
    pub(super) fn presorted_by(&self) -> String {
        self.0["Presorted Key"].to_string()
    }

    /// Whether a step below it reads rows of a table.
    pub(super) fn is_above_table(&self) -> bool {
        let mut below = Vec::new();
        collect(self.0, &mut below);
        below.iter().any(Node::reads)
    }
}

impl Explained {
    pub(super) fn nodes(&self) -> Vec<Node<'_>> {
        let mut nodes = Vec::new();
        collect(&self.plan, &mut nodes);
        nodes
    }

    /// Pages of tables and indexes that were touched.
    pub(super) fn pages(&self) -> u64 {
        let count = |field: &str| self.plan[field].as_u64().unwrap_or_default();
        count("Shared Hit Blocks") + count("Shared Read Blocks")
    }

    /// The steps in a line, for messages.
    pub(super) fn shown(&self) -> String {
        let shown = |node: &Node<'_>| {
            let (index, condition) = (node.text("Index Name"), node.text("Index Cond"));
            [node.kind(), node.table(), index, condition].join(" ").trim().to_owned()
        };
        self.nodes().iter().map(shown).collect::<Vec<_>>().join(" <- ")
    }
}

fn collect<'a>(plan: &'a Value, nodes: &mut Vec<Node<'a>>) {
    nodes.push(Node(plan));
    for below in plan["Plans"].as_array().into_iter().flatten() {
        collect(below, nodes);
    }
}
