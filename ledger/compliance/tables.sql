-- What verified feeds say, one table for each kind of fact. Filled by facts.py from records whose signatures, places and
-- commitments were checked; nothing here is trusted for more than "its author signed it". Times are ms since 1970 as their
-- author claims; lists are JSON texts. `member` and `seq` say where the entry stands, `event` is its id.

CREATE TABLE moment (as_of INTEGER NOT NULL);
CREATE TABLE grace (clock INTEGER, silence INTEGER, answer INTEGER, acceptance INTEGER, removal INTEGER);

CREATE TABLE entries (event TEXT PRIMARY KEY, member TEXT NOT NULL, seq INTEGER NOT NULL, type TEXT NOT NULL,
  ts INTEGER NOT NULL, leaf TEXT NOT NULL, held INTEGER NOT NULL);
CREATE UNIQUE INDEX entries_place ON entries (member, seq);
CREATE INDEX entries_type ON entries (type, member);
CREATE TABLE seen (event TEXT NOT NULL, of TEXT NOT NULL, at INTEGER NOT NULL, leaf TEXT NOT NULL);
-- What a look through the contents showed, and the salts that keep commitments unguessable.
CREATE TABLE marks (event TEXT NOT NULL, member TEXT NOT NULL, seq INTEGER NOT NULL, id TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE salts (salt BLOB NOT NULL, event TEXT NOT NULL);
CREATE INDEX salts_salt ON salts (salt);
CREATE INDEX seen_of ON seen (of, at);
-- The past of the entries that rules compare: the author of `event` knew `known` entries of `of`, `size` lay before it.
CREATE TABLE past (event TEXT NOT NULL, of TEXT NOT NULL, known INTEGER NOT NULL, size INTEGER NOT NULL,
  PRIMARY KEY (event, of)) WITHOUT ROWID;
-- All keys of a seat are one member: `seat` is the present key of the seat that a key has, or had; else the key itself.
CREATE TABLE who (member TEXT PRIMARY KEY, seat TEXT NOT NULL) WITHOUT ROWID;
-- Feeds of which entries are known to exist that are not here.
CREATE TABLE lacking (of TEXT NOT NULL, size INTEGER NOT NULL);

CREATE TABLE charters (height INTEGER PRIMARY KEY, digest TEXT NOT NULL, quorum INTEGER NOT NULL, voters INTEGER NOT NULL,
  cosignatures INTEGER NOT NULL);
CREATE TABLE seats (height INTEGER NOT NULL, member TEXT NOT NULL, name TEXT NOT NULL, role TEXT NOT NULL,
  organisation TEXT NOT NULL, PRIMARY KEY (height, member)) WITHOUT ROWID;

CREATE TABLE datasets (event TEXT PRIMARY KEY, member TEXT, seq INTEGER, dataset TEXT, tags TEXT, columns TEXT, purposes TEXT,
  retention_days INTEGER, licence TEXT, basis TEXT);
CREATE TABLE commitments (event TEXT PRIMARY KEY, member TEXT, seq INTEGER, dataset TEXT, train_rows INTEGER,
  held_out_rows INTEGER);
-- A grant has one row for its issue and one for each narrowing (`version` is that entry's id, `member` who wrote it).
CREATE TABLE terms (version TEXT PRIMARY KEY, member TEXT, seq INTEGER, issued TEXT NOT NULL, dataset TEXT, columns TEXT,
  tags_all TEXT, tags_none TEXT, actions TEXT, purposes TEXT, members TEXT, roles TEXT, not_before INTEGER, expires INTEGER,
  uses INTEGER, epsilon INTEGER, depth INTEGER, parent TEXT, basis TEXT, nonce TEXT);
CREATE INDEX terms_issued ON terms (issued);
CREATE TABLE revocations (event TEXT PRIMARY KEY, member TEXT, seq INTEGER, ts INTEGER, issued TEXT, reason TEXT);
CREATE TABLE acceptances (event TEXT PRIMARY KEY, member TEXT, seq INTEGER, issued TEXT);
CREATE TABLE decisions (event TEXT PRIMARY KEY, member TEXT, seq INTEGER, ts INTEGER, actor TEXT, action TEXT, dataset TEXT,
  purpose TEXT, columns TEXT, rows INTEGER, epsilon INTEGER, at INTEGER, run TEXT, verdict TEXT, reasons TEXT, policy TEXT);
CREATE INDEX decisions_run ON decisions (member, run);
CREATE TABLE chains (decision TEXT NOT NULL, position INTEGER NOT NULL, issued TEXT NOT NULL,
  PRIMARY KEY (decision, position)) WITHOUT ROWID;
CREATE INDEX chains_issued ON chains (issued);
CREATE TABLE recomputed (decision TEXT PRIMARY KEY, verdict TEXT NOT NULL, reasons TEXT NOT NULL, policy TEXT);
CREATE TABLE uses (event TEXT PRIMARY KEY, member TEXT, seq INTEGER, ts INTEGER, dataset TEXT, rows INTEGER, action TEXT,
  purpose TEXT, run TEXT, decision TEXT);
CREATE INDEX uses_run ON uses (member, run);
-- What the rules on access share, made from the tables above once everything is in (`made.sql`).
-- A grant with the seat of its issuer, and those of every grant above it; itself at distance 0.
CREATE TABLE above (issued TEXT NOT NULL, over TEXT NOT NULL, distance INTEGER NOT NULL, seat TEXT NOT NULL);
CREATE INDEX above_issued ON above (issued, seat);
-- Who may use a version of a grant: seats that it names, or that have, or had, a role that it names.
CREATE TABLE audience (version TEXT NOT NULL, seat TEXT NOT NULL, PRIMARY KEY (version, seat)) WITHOUT ROWID;
-- Every version of every grant in a decision's chain that its author knew: each of them must allow the access.
CREATE TABLE grounds (decision TEXT NOT NULL, position INTEGER NOT NULL, version TEXT, member TEXT, seq INTEGER, issued TEXT,
  dataset TEXT, columns TEXT, tags_all TEXT, tags_none TEXT, actions TEXT, purposes TEXT, members TEXT, roles TEXT,
  not_before INTEGER, expires INTEGER, uses INTEGER, epsilon INTEGER, depth INTEGER, parent TEXT, basis TEXT, nonce TEXT);
CREATE INDEX grounds_decision ON grounds (decision, issued);
-- A use with the decision it names, if that stands before it in the same feed.
CREATE TABLE accesses (event TEXT PRIMARY KEY, member TEXT, seq INTEGER, ts INTEGER, dataset TEXT, owner TEXT, name TEXT,
  rows INTEGER, action TEXT, purpose TEXT, run TEXT, decision TEXT, verdict TEXT, actor TEXT, asked_action TEXT,
  asked_purpose TEXT, columns TEXT, asked_rows INTEGER, epsilon INTEGER, at INTEGER, asked_owner TEXT, asked_name TEXT,
  asked_run TEXT);
CREATE INDEX accesses_decision ON accesses (decision);
-- What cosignatures say about times. `earliest`: a head of `size` entries or more was first cosigned then. `latest`: the
-- newest time in the cosignatures of a witness up to its entry `seq`. From them, `low`: a use was not before; `high`: a
-- revocation was not after.
CREATE TABLE earliest (of TEXT NOT NULL, size INTEGER NOT NULL, time INTEGER NOT NULL);
CREATE INDEX earliest_of ON earliest (of, size);
CREATE TABLE latest (member TEXT NOT NULL, seq INTEGER NOT NULL, time INTEGER NOT NULL);
CREATE INDEX latest_member ON latest (member, seq);
CREATE TABLE low (event TEXT PRIMARY KEY, time INTEGER);
CREATE TABLE high (event TEXT PRIMARY KEY, time INTEGER);
CREATE TABLE egress (event TEXT PRIMARY KEY, member TEXT, seq INTEGER, run TEXT, code TEXT);

CREATE TABLE contributions (event TEXT PRIMARY KEY, member TEXT, seq INTEGER, ts INTEGER, epoch TEXT, number INTEGER,
  blob TEXT, run TEXT, fate TEXT);
CREATE TABLE releases (digest TEXT PRIMARY KEY, height INTEGER, number INTEGER, parent TEXT, model TEXT, event TEXT,
  member TEXT, seq INTEGER);
CREATE TABLE covers (release TEXT NOT NULL, contribution TEXT NOT NULL, PRIMARY KEY (release, contribution)) WITHOUT ROWID;
-- How many organisations, other than the author's, had cosigned a contribution inside the release's own head vector.
CREATE TABLE attested (release TEXT NOT NULL, contribution TEXT NOT NULL, organisations INTEGER NOT NULL);
-- A voter who spoke against a contribution inside the release's own head vector.
CREATE TABLE objections (release TEXT NOT NULL, contribution TEXT NOT NULL, member TEXT NOT NULL, event TEXT NOT NULL);
CREATE TABLE replays (release TEXT PRIMARY KEY, model TEXT, matches INTEGER);
-- Verified cosignatures of heads that the feed has here; `member` is the witness.
CREATE TABLE cosignatures (event TEXT NOT NULL, member TEXT, seq INTEGER, of TEXT, size INTEGER, time INTEGER);
CREATE INDEX cosignatures_of ON cosignatures (of, size);
CREATE INDEX cosignatures_by ON cosignatures (member, seq);
CREATE TABLE served (event TEXT PRIMARY KEY, member TEXT, seq INTEGER, ts INTEGER, release TEXT, model TEXT);
CREATE TABLE withdrawn (event TEXT PRIMARY KEY, member TEXT, seq INTEGER, ts INTEGER, release TEXT);

CREATE TABLE erasures (event TEXT PRIMARY KEY, member TEXT, seq INTEGER, ts INTEGER, dataset TEXT, scope TEXT, rows INTEGER,
  deadline INTEGER);
-- What a quorum decided to leave out of every release above `height`.
CREATE TABLE forgettings (request TEXT NOT NULL, contribution TEXT NOT NULL, deadline INTEGER NOT NULL, height INTEGER NOT NULL);
CREATE TABLE erased_contributions (request TEXT NOT NULL, contribution TEXT NOT NULL);
CREATE TABLE erased_entries (request TEXT NOT NULL, entry TEXT NOT NULL);
CREATE TABLE confirmations (event TEXT PRIMARY KEY, member TEXT, seq INTEGER, ts INTEGER, request TEXT, bodies INTEGER);
