-- One view for each compliance rule, C1 to C16. Every row is one finding:
--   what      the case, a word of `rules.CASES`
--   member, seq, event   the entry that broke the rule
--   evidence  JSON list of event ids and digests that prove it, the entry itself first
--   facts     JSON object with what the sentence for people names
-- "A knew B" and "B lies before A" are `past`: by hashes, whatever their clocks say. A rule that concludes from something that is
-- absent is silent while `lacking` says that entries are known to exist elsewhere: the audit then says "could not check".

-- -- what the rules share ---------------------------------------------------------------------------------------------

-- `name` of somebody's own data set, or `<owner>/<name>` for another member's.
CREATE VIEW data_asked AS
SELECT d.*, coalesce(w.seat, iif(substr(dataset, 65, 1) = '/', substr(dataset, 1, 64), actor)) AS owner,
  iif(substr(dataset, 65, 1) = '/', substr(dataset, 66), dataset) AS name, coalesce(a.seat, actor) AS seat FROM decisions d
LEFT JOIN who w ON w.member = iif(substr(dataset, 65, 1) = '/', substr(dataset, 1, 64), actor) LEFT JOIN who a ON a.member = actor;
CREATE VIEW data_used AS
SELECT u.*, coalesce(w.seat, iif(substr(dataset, 65, 1) = '/', substr(dataset, 1, 64), u.member)) AS owner,
  iif(substr(dataset, 65, 1) = '/', substr(dataset, 66), dataset) AS name FROM uses u
LEFT JOIN who w ON w.member = iif(substr(dataset, 65, 1) = '/', substr(dataset, 1, 64), u.member);
CREATE VIEW grants AS
SELECT t.*, iif(substr(dataset, 65, 1) = '/', substr(dataset, 66), dataset) AS name, w.seat FROM terms t
JOIN who w ON w.member = t.member WHERE version = issued;

-- The newest word of each member, and whether its feed has ended in an orderly way.
CREATE VIEW newest AS
SELECT member, max(seq) AS seq, max(ts) AS ts, max(type = 'key.rotated') AS ended FROM entries GROUP BY member;
CREATE VIEW now_seated AS
SELECT s.* FROM seats s WHERE s.height = (SELECT max(height) FROM charters);

-- -- C1: use without a valid grant ------------------------------------------------------------------------------------
CREATE VIEW c1 AS
SELECT 'no-decision' AS what, u.member, u.seq, u.event, json_array(u.event) AS evidence,
  json_object('dataset', u.dataset, 'action', u.action, 'run', u.run) AS facts
FROM uses u WHERE NOT EXISTS (SELECT 1 FROM accesses a WHERE a.event = u.event)
  AND NOT EXISTS (SELECT 1 FROM entries e WHERE e.event = u.decision AND e.member = u.member AND e.seq < u.seq
    AND e.type = 'access.decided' AND NOT e.held)
UNION ALL
SELECT 'denied', member, seq, event, json_array(event, decision), json_object('dataset', dataset, 'action', action)
FROM accesses WHERE verdict <> 'allow'
UNION ALL
SELECT 'other-act', member, seq, event, json_array(event, decision), json_object('dataset', dataset, 'other', asked_name)
FROM accesses WHERE verdict = 'allow' AND (owner <> asked_owner OR name <> asked_name OR run <> asked_run)
UNION ALL
SELECT 'decision-twice', a.member, a.seq, a.event, json_array(a.event, a.decision, b.event), json_object('dataset', a.dataset)
FROM accesses a JOIN accesses b ON b.decision = a.decision AND b.seq < a.seq GROUP BY a.event
UNION ALL
SELECT 'no-grant', member, seq, event, json_array(event, decision), json_object('dataset', dataset, 'action', action)
FROM accesses a WHERE verdict = 'allow' AND NOT EXISTS (SELECT 1 FROM chains c WHERE c.decision = a.decision)
UNION ALL
SELECT 'unknown-grant', a.member, a.seq, a.event, json_array(a.event, a.decision, c.issued),
  json_object('dataset', a.dataset, 'grant', c.issued)
FROM accesses a JOIN chains c USING (decision) WHERE a.verdict = 'allow' AND NOT EXISTS (SELECT 1 FROM lacking)
  AND NOT EXISTS (SELECT 1 FROM grounds g WHERE g.decision = c.decision AND g.issued = c.issued AND g.version = c.issued)
UNION ALL
SELECT 'replayed', a.member, a.seq, a.event, json_array(a.event, a.decision, g.version, o.version),
  json_object('dataset', a.dataset, 'grant', g.version)
FROM accesses a JOIN chains c USING (decision) JOIN grants g ON g.version = c.issued
JOIN grants o ON o.member = g.member AND o.nonce = g.nonce AND o.seq < g.seq WHERE a.verdict = 'allow'
UNION ALL
SELECT 'not-owner', a.member, a.seq, a.event, json_array(a.event, a.decision, g.version),
  json_object('dataset', a.dataset, 'grant', g.version, 'who', g.member)
FROM accesses a JOIN chains c ON c.decision = a.decision AND c.position = 0 JOIN grants g ON g.version = c.issued
WHERE a.verdict = 'allow' AND (g.seat <> a.owner OR g.name <> a.name OR g.parent IS NOT NULL)
UNION ALL
SELECT 'broken-chain', a.member, a.seq, a.event, json_array(a.event, a.decision, g.version),
  json_object('dataset', a.dataset, 'grant', g.version)
FROM accesses a JOIN chains c ON c.decision = a.decision AND c.position > 0 JOIN grants g ON g.version = c.issued
JOIN chains o ON o.decision = a.decision AND o.position = c.position - 1
WHERE a.verdict = 'allow' AND (g.parent IS NOT o.issued OR g.name <> a.name)
UNION ALL
SELECT 'not-addressed', a.member, a.seq, a.event, json_array(a.event, a.decision, g.version),
  json_object('dataset', a.dataset, 'grant', g.issued, 'who', a.actor)
FROM accesses a JOIN grounds g USING (decision) WHERE a.verdict = 'allow'
  AND g.position = (SELECT max(position) FROM chains c WHERE c.decision = a.decision)
  AND NOT EXISTS (SELECT 1 FROM audience x WHERE x.version = g.version AND x.seat = a.actor);

-- -- C2: purpose, action, columns or rows outside what was allowed ----------------------------------------------------
CREATE VIEW c2 AS
SELECT 'relabelled' AS what, member, seq, event, json_array(event, decision) AS evidence,
  json_object('dataset', dataset, 'asked', asked_action || ' for ' || asked_purpose, 'did', action || ' for ' || purpose) AS facts
FROM accesses WHERE action <> asked_action OR purpose <> asked_purpose
UNION ALL
SELECT 'more-rows', member, seq, event, json_array(event, decision),
  json_object('dataset', dataset, 'asked', asked_rows, 'did', rows)
FROM accesses WHERE rows > asked_rows
UNION ALL
SELECT 'action', a.member, a.seq, a.event, json_array(a.event, a.decision, g.version),
  json_object('dataset', a.dataset, 'action', a.action, 'grant', g.issued)
FROM accesses a JOIN grounds g USING (decision) WHERE a.verdict = 'allow'
  AND a.action NOT IN (SELECT value FROM json_each(g.actions))
UNION ALL
SELECT 'purpose', a.member, a.seq, a.event, json_array(a.event, a.decision, g.version),
  json_object('dataset', a.dataset, 'purpose', a.purpose, 'grant', g.issued)
FROM accesses a JOIN grounds g USING (decision) WHERE a.verdict = 'allow'
  AND a.purpose NOT IN (SELECT value FROM json_each(g.purposes))
UNION ALL
SELECT 'columns', a.member, a.seq, a.event, json_array(a.event, a.decision, g.version),
  json_object('dataset', a.dataset, 'columns', (SELECT group_concat(value, ', ') FROM json_each(a.columns)), 'grant', g.issued)
FROM accesses a JOIN grounds g USING (decision) WHERE a.verdict = 'allow' AND g.columns IS NOT NULL
  AND EXISTS (SELECT 1 FROM json_each(a.columns) c WHERE c.value NOT IN (SELECT value FROM json_each(g.columns)));

-- -- C3: use outside the time of the grant ----------------------------------------------------------------------------
CREATE VIEW c3 AS
SELECT 'expired' AS what, a.member, a.seq, a.event, json_array(a.event, a.decision, g.version) AS evidence,
  json_object('dataset', a.dataset, 'grant', g.issued, 'limit_ms', g.expires, 'at_ms', max(a.at, a.ts)) AS facts
FROM accesses a JOIN grounds g USING (decision), grace LEFT JOIN low ON low.event = a.event WHERE a.verdict = 'allow'
  AND (a.at >= g.expires OR a.ts >= g.expires + clock OR low.time >= g.expires + clock)
UNION ALL
SELECT 'early', a.member, a.seq, a.event, json_array(a.event, a.decision, g.version),
  json_object('dataset', a.dataset, 'grant', g.issued, 'limit_ms', g.not_before, 'at_ms', a.at)
FROM accesses a JOIN grounds g USING (decision) WHERE a.verdict = 'allow' AND a.at < g.not_before
UNION ALL
SELECT 'clock', d.member, d.seq, d.event, json_array(d.event),
  json_object('dataset', d.dataset, 'limit_ms', d.ts, 'at_ms', d.at)
FROM decisions d, grace WHERE abs(d.at - d.ts) > clock;

-- -- C4: use after a revocation ---------------------------------------------------------------------------------------
-- In the causal past of the use: a violation. Else a violation if cosignatures prove that it was later by more than the
-- grace; else, where only the clocks say so, a warning: both were written without knowing the other.
CREATE VIEW revoked AS
SELECT a.event, a.member, a.seq, a.ts, a.dataset, a.decision, c.issued, r.event AS revocation, r.ts AS revoked_ts,
  EXISTS (SELECT 1 FROM past p WHERE p.event = a.event AND p.of = r.member AND p.known > r.seq) AS knew,
  EXISTS (SELECT 1 FROM past p WHERE p.event = r.event AND p.of = a.member AND p.size > a.seq) AS before
FROM accesses a JOIN chains c USING (decision) JOIN revocations r ON r.issued = c.issued
WHERE a.verdict = 'allow' AND (SELECT seat FROM who WHERE member = r.member)
  IN (SELECT seat FROM above o WHERE o.issued = c.issued);
CREATE VIEW c4 AS
SELECT 'after' AS what, member, seq, event, json_array(event, decision, revocation) AS evidence,
  json_object('dataset', dataset, 'grant', issued) AS facts
FROM revoked WHERE knew
UNION ALL
SELECT 'late', r.member, r.seq, r.event, json_array(r.event, r.decision, revocation),
  json_object('dataset', dataset, 'grant', issued, 'limit_ms', high.time, 'at_ms', low.time)
FROM revoked r, grace JOIN low ON low.event = r.event JOIN high ON high.event = r.revocation
WHERE NOT knew AND NOT before AND high.time + clock < low.time
UNION ALL
SELECT 'concurrent', r.member, r.seq, r.event, json_array(r.event, r.decision, revocation),
  json_object('dataset', dataset, 'grant', issued, 'limit_ms', revoked_ts, 'at_ms', ts)
FROM revoked r, grace LEFT JOIN low ON low.event = r.event LEFT JOIN high ON high.event = r.revocation
WHERE NOT knew AND NOT before AND revoked_ts < ts AND coalesce(high.time + clock >= low.time, 1)
UNION ALL
SELECT 'narrowed', a.member, a.seq, a.event, json_array(a.event, a.decision, t.version),
  json_object('dataset', a.dataset, 'grant', t.issued, 'limit_ms', e.ts, 'at_ms', a.ts)
FROM accesses a JOIN chains c USING (decision) JOIN terms t ON t.issued = c.issued AND t.version <> t.issued
JOIN entries e ON e.event = t.version
WHERE a.verdict = 'allow' AND e.ts < a.ts
  AND (SELECT seat FROM who WHERE member = t.member) IN (SELECT seat FROM above o WHERE o.issued = t.issued)
  AND NOT EXISTS (SELECT 1 FROM past p WHERE p.event = a.event AND p.of = t.member AND p.known > t.seq)
  AND NOT EXISTS (SELECT 1 FROM past p WHERE p.event = t.version AND p.of = a.member AND p.size > a.seq)
  AND (a.action NOT IN (SELECT value FROM json_each(t.actions)) OR a.purpose NOT IN (SELECT value FROM json_each(t.purposes))
    OR a.at >= t.expires);

-- -- C5: delegation widened, too deep, or by somebody who may not -----------------------------------------------------
-- A grant below another, against the terms of that other as they were first written (narrowings hold at each use).
CREATE VIEW handed_on AS
SELECT g.version AS event, g.member, g.seq, g.issued, g.name, g.columns, g.tags_all, g.tags_none, g.actions, g.purposes,
  g.not_before, g.expires, g.uses, g.epsilon, g.depth, t.version AS parent, t.columns AS p_columns, t.tags_all AS p_tags_all,
  t.tags_none AS p_tags_none, t.actions AS p_actions, t.purposes AS p_purposes, t.members AS p_members, t.roles AS p_roles,
  t.not_before AS p_not_before, t.expires AS p_expires, t.uses AS p_uses, t.epsilon AS p_epsilon, t.depth AS p_depth,
  o.name AS p_name
FROM grants g JOIN grants o ON o.version = g.parent JOIN terms t ON t.issued = o.version
JOIN past p ON p.event = g.version AND p.of = t.member AND p.known > t.seq
WHERE t.version = t.issued;
CREATE VIEW c5 AS
SELECT 'unknown-parent' AS what, g.member, g.seq, g.version AS event, json_array(g.version, g.parent) AS evidence,
  json_object('dataset', g.dataset) AS facts
FROM grants g WHERE g.parent IS NOT NULL AND NOT EXISTS (SELECT 1 FROM lacking)
  AND NOT EXISTS (SELECT 1 FROM handed_on h WHERE h.event = g.version)
UNION ALL
SELECT 'not-delegate', h.member, h.seq, h.event, json_array(h.event, h.parent), json_object('dataset', h.name)
FROM handed_on h JOIN who w ON w.member = h.member
WHERE NOT EXISTS (SELECT 1 FROM audience x WHERE x.version = h.parent AND x.seat = w.seat)
UNION ALL
SELECT 'too-deep', member, seq, event, json_array(event, parent), json_object('dataset', name)
FROM handed_on WHERE depth >= p_depth
UNION ALL
SELECT 'wider', member, seq, event, json_array(event, parent), json_object('dataset', name, 'in', dimension) FROM (
  SELECT 'data set' AS dimension, * FROM handed_on WHERE name <> p_name
  UNION ALL SELECT 'columns', * FROM handed_on h WHERE p_columns IS NOT NULL AND (columns IS NULL
    OR EXISTS (SELECT value FROM json_each(h.columns) EXCEPT SELECT value FROM json_each(h.p_columns)))
  UNION ALL SELECT 'rows', * FROM handed_on h
    WHERE EXISTS (SELECT value FROM json_each(h.p_tags_all) EXCEPT SELECT value FROM json_each(h.tags_all))
    OR EXISTS (SELECT value FROM json_each(h.p_tags_none) EXCEPT SELECT value FROM json_each(h.tags_none))
  UNION ALL SELECT 'actions', * FROM handed_on h
    WHERE EXISTS (SELECT value FROM json_each(h.actions) EXCEPT SELECT value FROM json_each(h.p_actions))
  UNION ALL SELECT 'purposes', * FROM handed_on h
    WHERE EXISTS (SELECT value FROM json_each(h.purposes) EXCEPT SELECT value FROM json_each(h.p_purposes))
  UNION ALL SELECT 'beginning', * FROM handed_on WHERE not_before < p_not_before
  UNION ALL SELECT 'end', * FROM handed_on WHERE p_expires IS NOT NULL AND (expires IS NULL OR expires > p_expires)
  UNION ALL SELECT 'number of uses', * FROM handed_on WHERE p_uses IS NOT NULL AND (uses IS NULL OR uses > p_uses)
  UNION ALL SELECT 'privacy budget', * FROM handed_on WHERE p_epsilon IS NOT NULL AND (epsilon IS NULL OR epsilon > p_epsilon))
UNION ALL
SELECT 'not-issuer', t.member, t.seq, t.version, json_array(t.version, g.version), json_object('dataset', g.dataset)
FROM terms t JOIN grants g ON g.version = t.issued WHERE t.version <> t.issued
  AND (SELECT seat FROM who WHERE member = t.member) NOT IN (SELECT seat FROM above a WHERE a.issued = t.issued)
UNION ALL
SELECT 'not-issuer', r.member, r.seq, r.event, json_array(r.event, g.version), json_object('dataset', g.dataset)
FROM revocations r JOIN grants g ON g.version = r.issued
WHERE (SELECT seat FROM who WHERE member = r.member) NOT IN (SELECT seat FROM above a WHERE a.issued = r.issued);

-- -- C6, C7: contributions and the training they came from ------------------------------------------------------------
-- Accesses whose bodies were erased may be the ones that are looked for; then nothing is said.
CREATE VIEW earlier AS -- entries of the feeds of the author's seat that lie before a contribution
SELECT p.event, p.of, p.size FROM contributions c JOIN past p ON p.event = c.event JOIN who w ON w.member = c.member
JOIN who o ON o.member = p.of AND o.seat = w.seat;
CREATE VIEW c6 AS
SELECT 'not-logged' AS what, c.member, c.seq, c.event, json_array(c.event, d.event) AS evidence,
  json_object('run', c.run, 'dataset', d.dataset) AS facts
FROM contributions c JOIN decisions d ON d.run = c.run AND d.action = 'train' AND d.verdict = 'allow'
JOIN earlier b ON b.event = c.event AND b.of = d.member AND b.size > d.seq
WHERE c.run <> '' AND NOT EXISTS (SELECT 1 FROM uses u JOIN earlier b ON b.event = c.event AND b.of = u.member AND b.size > u.seq
    WHERE u.run = c.run AND u.action = 'train')
  AND NOT EXISTS (SELECT 1 FROM entries e JOIN earlier b ON b.event = c.event AND b.of = e.member AND b.size > e.seq
    WHERE e.type = 'data.used' AND NOT e.held)
GROUP BY c.event;
CREATE VIEW c7 AS
SELECT 'no-run' AS what, c.member, c.seq, c.event, json_array(c.event) AS evidence,
  json_object('number', c.number, 'run', c.run) AS facts
FROM contributions c WHERE NOT EXISTS (SELECT 1 FROM decisions d JOIN earlier b ON b.event = c.event AND b.of = d.member
    AND b.size > d.seq WHERE d.run = c.run AND c.run <> '')
  AND NOT EXISTS (SELECT 1 FROM uses u JOIN earlier b ON b.event = c.event AND b.of = u.member AND b.size > u.seq
    WHERE u.run = c.run AND c.run <> '')
  AND NOT EXISTS (SELECT 1 FROM entries e JOIN earlier b ON b.event = c.event AND b.of = e.member AND b.size > e.seq
    WHERE e.type IN ('data.used', 'access.decided') AND NOT e.held)
UNION ALL
SELECT 'run-twice', c.member, c.seq, c.event, json_array(c.event, o.event), json_object('number', c.number, 'run', c.run)
FROM contributions c JOIN contributions o ON o.member = c.member AND o.run = c.run AND o.seq < c.seq WHERE c.run <> ''
UNION ALL
SELECT 'kept-back', c.member, c.seq, c.event, json_array(c.event, r.event),
  json_object('number', c.number, 'run', c.run, 'code', r.code)
FROM contributions c JOIN egress r ON r.member = c.member AND r.run = c.run AND r.seq < c.seq
WHERE c.run <> '' AND NOT EXISTS (SELECT 1 FROM egress s WHERE s.member = c.member AND s.run IS NULL
  AND s.seq > r.seq AND s.seq < c.seq);

-- -- C8: a release over a contribution that may not be in one ---------------------------------------------------------
CREATE VIEW new_in AS -- contributions at the release that covered them first
SELECT x.contribution, r.* FROM covers x JOIN releases r ON r.digest = x.release
WHERE NOT EXISTS (SELECT 1 FROM covers y JOIN releases o ON o.digest = y.release
  WHERE y.contribution = x.contribution AND o.height < r.height);
CREATE VIEW c8 AS
SELECT 'objected' AS what, r.member, r.seq, r.event,
  json_array(r.event, o.contribution, (SELECT json_group_array(event) FROM objections x WHERE x.release = o.release
    AND x.contribution = o.contribution)) AS evidence,
  json_object('release', r.number, 'number', count(*)) AS facts
FROM objections o JOIN releases r ON r.digest = o.release JOIN charters c ON c.height = r.height
GROUP BY o.release, o.contribution HAVING count(*) > c.voters - c.quorum
UNION ALL
SELECT 'unwitnessed', n.member, n.seq, n.event, json_array(n.event, n.contribution),
  json_object('release', n.number, 'needed', c.cosignatures, 'number', t.organisations)
FROM new_in n JOIN attested t ON t.release = n.digest AND t.contribution = n.contribution JOIN charters c ON c.height = n.height
WHERE t.organisations < c.cosignatures;

-- -- C9: what was merged or is served is not what was agreed ----------------------------------------------------------
CREATE VIEW c9 AS
SELECT 'differs' AS what, r.member, r.seq, r.event, json_array(r.event, r.digest, p.model) AS evidence,
  json_object('release', r.number, 'model', p.model, 'signed', r.model) AS facts
FROM replays p JOIN releases r ON r.digest = p.release WHERE NOT p.matches
UNION ALL
SELECT 'served-other', s.member, s.seq, s.event, json_array(s.event, r.event), json_object('release', r.number, 'model', s.model)
FROM served s JOIN releases r ON r.digest = s.release WHERE r.model <> s.model
UNION ALL
SELECT 'unreleased', s.member, s.seq, s.event, json_array(s.event), json_object('release', s.release)
FROM served s WHERE NOT EXISTS (SELECT 1 FROM releases r WHERE r.digest = s.release) AND NOT EXISTS (SELECT 1 FROM lacking);

-- -- C10: a contribution that had to go is still in a model -----------------------------------------------------------
CREATE VIEW lineage AS
WITH RECURSIVE above (release, ancestor, depth) AS (
  SELECT digest, digest, 0 FROM releases
  UNION SELECT a.release, r.parent, a.depth + 1 FROM above a JOIN releases r ON r.digest = a.ancestor WHERE r.parent IS NOT NULL)
SELECT a.release, x.contribution, min(a.depth) AS depth FROM above a JOIN covers x ON x.release = a.ancestor
GROUP BY a.release, x.contribution;
CREATE VIEW due AS -- contributions whose removal is overdue
SELECT e.event AS request, x.contribution, e.deadline, 0 AS height FROM erasures e
JOIN erased_contributions x ON x.request = e.event
JOIN contributions c ON c.event = x.contribution AND c.member = e.member, moment, grace WHERE as_of > e.deadline + removal
UNION ALL SELECT f.request, f.contribution, f.deadline, f.height FROM forgettings f, moment, grace WHERE as_of > f.deadline + removal;
CREATE VIEW serving AS -- who still serves a release
SELECT s.*, n.ts AS alive FROM served s JOIN newest n ON n.member = s.member
JOIN now_seated t ON t.member = s.member WHERE NOT EXISTS (SELECT 1 FROM withdrawn w WHERE w.member = s.member AND w.release = s.release AND w.seq > s.seq);
CREATE VIEW c10 AS
SELECT 'served' AS what, s.member, s.seq, s.event, json_array(s.event, d.request, d.contribution) AS evidence,
  json_object('release', r.number, 'limit_ms', d.deadline) AS facts
FROM serving s JOIN releases r ON r.digest = s.release JOIN lineage l ON l.release = s.release AND l.depth = 0
JOIN due d USING (contribution), grace WHERE s.alive > d.deadline + removal
UNION ALL
SELECT 'released', r.member, r.seq, r.event, json_array(r.event, d.request, d.contribution),
  json_object('release', r.number, 'limit_ms', d.deadline)
FROM releases r JOIN entries p ON p.event = r.event JOIN covers x ON x.release = r.digest JOIN due d USING (contribution)
JOIN entries q ON q.event = d.request JOIN past k ON k.event = r.event AND k.of = q.member AND k.known > q.seq, grace
WHERE p.ts > d.deadline + removal AND r.height > d.height
UNION ALL
SELECT 'learnt', s.member, s.seq, s.event, json_array(s.event, d.request, d.contribution),
  json_object('release', r.number, 'depth', l.depth)
FROM serving s JOIN releases r ON r.digest = s.release JOIN lineage l ON l.release = s.release AND l.depth > 0
JOIN due d USING (contribution);

-- -- C11, C16: budgets ------------------------------------------------------------------------------------------------
-- What a grant was charged with when it was used: every allowed access that the author of this one knew, and this one.
CREATE VIEW charged AS
SELECT a.event, a.member, a.seq, a.ts, a.dataset, a.decision, c.issued,
  (SELECT min(g.uses) FROM grounds g WHERE g.decision = a.decision AND g.issued = c.issued) AS uses,
  (SELECT min(g.epsilon) FROM grounds g WHERE g.decision = a.decision AND g.issued = c.issued) AS epsilon,
  (SELECT count(DISTINCT b.decision) FROM accesses b JOIN chains k ON k.decision = b.decision AND k.issued = c.issued
    LEFT JOIN past p ON p.event = a.event AND p.of = b.member
    WHERE b.verdict = 'allow' AND (b.event = a.event OR b.seq < p.known)) AS used,
  (SELECT total(b.epsilon) FROM accesses b JOIN chains k ON k.decision = b.decision AND k.issued = c.issued
    LEFT JOIN past p ON p.event = a.event AND p.of = b.member
    WHERE b.verdict = 'allow' AND (b.event = a.event OR b.seq < p.known)) AS spent,
  a.epsilon AS asked
FROM accesses a JOIN chains c USING (decision) WHERE a.verdict = 'allow' AND EXISTS (
  SELECT 1 FROM grounds g WHERE g.decision = a.decision AND g.issued = c.issued AND (g.uses IS NOT NULL OR g.epsilon IS NOT NULL));
CREATE VIEW c11 AS
SELECT iif(asked IS NULL, 'unbounded', 'spent') AS what, member, seq, event, json_array(event, decision, issued) AS evidence,
  json_object('dataset', dataset, 'grant', issued, 'spent_micro', CAST(spent AS INTEGER), 'limit_micro', epsilon) AS facts
FROM charged WHERE epsilon IS NOT NULL AND (asked IS NULL OR spent > epsilon);
CREATE VIEW c16 AS
SELECT 'exceeded' AS what, member, seq, event, json_array(event, decision, issued) AS evidence,
  json_object('dataset', dataset, 'grant', issued, 'number', used, 'limit', uses) AS facts
FROM charged WHERE uses IS NOT NULL AND used > uses
UNION ALL
SELECT 'together', a.member, a.seq, a.event, json_array(a.event, g.version),
  json_object('dataset', a.dataset, 'grant', g.version, 'number', count(DISTINCT a.decision), 'limit', g.uses, 'last', max(a.ts))
FROM grants g JOIN chains c ON c.issued = g.version JOIN accesses a ON a.decision = c.decision AND a.verdict = 'allow'
WHERE g.uses IS NOT NULL GROUP BY g.version
HAVING count(DISTINCT a.decision) > g.uses
  AND NOT EXISTS (SELECT 1 FROM charged x WHERE x.issued = g.version AND x.used > x.uses);

-- -- C12: half of a double entry --------------------------------------------------------------------------------------
CREATE VIEW c12 AS
SELECT 'not-accepted' AS what, g.member, g.seq, g.version AS event, json_array(g.version) AS evidence,
  json_object('dataset', g.dataset) AS facts
FROM grants g JOIN entries e ON e.event = g.version, moment, grace
WHERE as_of > e.ts + acceptance AND (g.expires IS NULL OR g.expires > as_of) AND NOT EXISTS (SELECT 1 FROM lacking)
  AND EXISTS (SELECT 1 FROM json_each(g.members) m LEFT JOIN who w ON w.member = m.value
    WHERE coalesce(w.seat, m.value) <> g.seat)
  AND NOT EXISTS (SELECT 1 FROM revocations r WHERE r.issued = g.version)
  AND NOT EXISTS (SELECT 1 FROM acceptances a JOIN who w ON w.member = a.member
    JOIN audience x ON x.version = g.version AND x.seat = w.seat WHERE a.issued = g.version)
UNION ALL
SELECT 'accepted-unknown', a.member, a.seq, a.event, json_array(a.event, a.issued), json_object('grant', a.issued)
FROM acceptances a WHERE NOT EXISTS (SELECT 1 FROM lacking) AND NOT EXISTS (SELECT 1 FROM grants g WHERE g.version = a.issued)
UNION ALL
SELECT 'not-recorded', c.member, c.seq, c.event, json_array(c.event), json_object('number', c.number)
FROM contributions c, moment, grace WHERE as_of > c.ts + answer
  AND EXISTS (SELECT 1 FROM now_seated s JOIN newest n ON n.member = s.member WHERE s.member <> c.member AND n.ts > c.ts + answer)
  AND NOT EXISTS (SELECT 1 FROM seen s WHERE s.of = c.member AND s.at >= c.seq)
UNION ALL
SELECT 'done-unknown', d.member, d.seq, d.event, json_array(d.event, d.request), json_object()
FROM confirmations d WHERE NOT EXISTS (SELECT 1 FROM lacking) AND NOT EXISTS (SELECT 1 FROM erasures e WHERE e.event = d.request);

-- -- C13: a member that has fallen silent -----------------------------------------------------------------------------
CREATE VIEW c13 AS
SELECT 'silent' AS what, n.member, n.seq, e.event, json_array(e.event) AS evidence, json_object('at_ms', n.ts, 'limit_ms', as_of) AS facts
FROM now_seated s JOIN newest n ON n.member = s.member JOIN entries e ON e.member = n.member AND e.seq = n.seq, moment, grace
WHERE s.role <> 'auditor' AND NOT n.ended AND as_of > n.ts + silence;

-- -- C14: a decision that comes out otherwise when it is repeated -----------------------------------------------------
CREATE VIEW c14 AS
SELECT iif(d.verdict <> r.verdict, 'verdict', 'reasons') AS what, d.member, d.seq, d.event, json_array(d.event) AS evidence,
  json_object('dataset', d.dataset, 'logged', d.verdict, 'computed', r.verdict,
    'reasons', (SELECT group_concat(value, ', ') FROM json_each(r.reasons))) AS facts
FROM decisions d JOIN recomputed r ON r.decision = d.event WHERE d.verdict <> r.verdict OR d.reasons <> r.reasons
UNION ALL
SELECT 'policy', d.member, d.seq, d.event, json_array(d.event), json_object('dataset', d.dataset)
FROM decisions d JOIN recomputed r ON r.decision = d.event WHERE d.policy <> r.policy;

-- -- C15: an erasure that was asked for and not confirmed -------------------------------------------------------------
CREATE VIEW holders AS -- who has to confirm: the author, and with bodies or contributions to remove, every seated member
SELECT e.event AS request, n.member, n.seq, n.ts AS alive, o.seat FROM erasures e JOIN who w ON w.member = e.member
JOIN newest n ON n.member = w.seat
  OR ((EXISTS (SELECT 1 FROM erased_entries x WHERE x.request = e.event)
    OR EXISTS (SELECT 1 FROM erased_contributions x WHERE x.request = e.event))
    AND n.member IN (SELECT member FROM now_seated)) JOIN who o ON o.member = n.member;
CREATE VIEW c15 AS
SELECT iif(h.alive > e.deadline + clock, 'unconfirmed', 'silent') AS what, h.member, h.seq, n.event,
  json_array(e.event, n.event) AS evidence, json_object('dataset', e.dataset, 'owner', e.member, 'limit_ms', e.deadline) AS facts
FROM erasures e JOIN holders h ON h.request = e.event JOIN entries n ON n.member = h.member AND n.seq = h.seq, moment, grace
WHERE as_of > e.deadline + clock
  AND NOT EXISTS (SELECT 1 FROM confirmations d JOIN who w ON w.member = d.member WHERE d.request = e.event AND w.seat = h.seat)
UNION ALL
SELECT 'late', d.member, d.seq, d.event, json_array(d.event, e.event), json_object('dataset', e.dataset, 'owner', e.member,
  'limit_ms', e.deadline, 'at_ms', d.ts)
FROM confirmations d JOIN erasures e ON e.event = d.request, grace WHERE d.ts > e.deadline + clock
UNION ALL
SELECT 'still-held', t.member, t.seq, t.event, json_array(t.event, e.event), json_object('dataset', e.dataset, 'limit_ms', e.deadline)
FROM erased_entries x JOIN erasures e ON e.event = x.request JOIN entries t ON t.event = x.entry AND t.member = e.member,
  moment, grace
WHERE t.held AND t.type IN ('data.used', 'access.decided') AND as_of > e.deadline + clock;

-- -- records of processing (GDPR article 30) --------------------------------------------------------------------------
CREATE VIEW records AS
SELECT d.member, coalesce((SELECT organisation FROM now_seated s WHERE s.member = d.member), '') AS controller, d.dataset, d.tags,
  d.columns, d.purposes, d.retention_days, d.licence, d.basis,
  (SELECT json_group_array(DISTINCT m.value) FROM grants g, json_each(g.members) m WHERE g.member = d.member
    AND g.name = d.dataset AND m.value <> d.member) AS recipients,
  (SELECT json_group_array(DISTINCT r.value) FROM grants g, json_each(g.roles) r WHERE g.member = d.member
    AND g.name = d.dataset) AS recipient_roles,
  (SELECT json_group_array(DISTINCT u.action || ' for ' || u.purpose) FROM data_used u WHERE u.owner = (SELECT seat FROM who w WHERE w.member = d.member)
    AND u.name = d.dataset) AS activities,
  (SELECT count(*) FROM data_used u WHERE u.owner = (SELECT seat FROM who w WHERE w.member = d.member) AND u.name = d.dataset) AS uses,
  (SELECT min(ts) FROM data_used u WHERE u.owner = (SELECT seat FROM who w WHERE w.member = d.member) AND u.name = d.dataset) AS first_ms,
  (SELECT max(ts) FROM data_used u WHERE u.owner = (SELECT seat FROM who w WHERE w.member = d.member) AND u.name = d.dataset) AS last_ms,
  (SELECT count(*) FROM data_asked a WHERE a.owner = (SELECT seat FROM who w WHERE w.member = d.member) AND a.name = d.dataset AND a.verdict = 'deny') AS denied,
  (SELECT count(*) FROM erasures e WHERE e.member = d.member AND e.dataset = d.dataset) AS erasures,
  (SELECT json_array(train_rows, held_out_rows) FROM commitments c WHERE c.member = d.member AND c.dataset = d.dataset
    ORDER BY seq DESC LIMIT 1) AS rows
FROM datasets d WHERE NOT EXISTS (SELECT 1 FROM datasets o WHERE o.member = d.member AND o.dataset = d.dataset AND o.seq > d.seq);
