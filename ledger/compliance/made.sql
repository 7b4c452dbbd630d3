-- Fills the tables that the rules share from the facts; run once, when all of them are in.

INSERT INTO above
WITH RECURSIVE up (issued, over, distance) AS (
  SELECT version, version, 0 FROM grants
  UNION SELECT u.issued, g.parent, u.distance + 1 FROM up u JOIN grants g ON g.version = u.over
    WHERE g.parent IS NOT NULL AND u.distance < 16)
SELECT u.issued, u.over, u.distance, g.seat FROM up u JOIN grants g ON g.version = u.over;

INSERT OR IGNORE INTO audience
SELECT t.version, coalesce(w.seat, m.value) FROM terms t, json_each(t.members) m LEFT JOIN who w ON w.member = m.value
UNION SELECT t.version, w.seat FROM terms t, json_each(t.roles) r JOIN seats s ON s.role = r.value
  JOIN who w ON w.member = s.member;

INSERT INTO grounds
SELECT c.decision, c.position, t.* FROM chains c JOIN terms t ON t.issued = c.issued
JOIN past p ON p.event = c.decision AND p.of = t.member AND p.known > t.seq
JOIN who w ON w.member = t.member WHERE w.seat IN (SELECT seat FROM above a WHERE a.issued = t.issued);

INSERT INTO accesses
SELECT u.event, u.member, u.seq, u.ts, u.dataset, u.owner, u.name, u.rows, u.action, u.purpose, u.run, d.event, d.verdict,
  d.seat, d.action, d.purpose, d.columns, d.rows, d.epsilon, d.at, d.owner, d.name, d.run
FROM data_used u JOIN data_asked d ON d.event = u.decision AND d.member = u.member AND d.seq < u.seq;

INSERT INTO earliest
SELECT of, size, min(time) OVER (PARTITION BY of ORDER BY size DESC) FROM cosignatures;

INSERT INTO latest
SELECT member, seq, max(time) OVER (PARTITION BY member ORDER BY seq) FROM cosignatures;

INSERT INTO low
SELECT p.event, max((SELECT l.time FROM latest l WHERE l.member = p.of AND l.seq < p.size ORDER BY l.seq DESC LIMIT 1))
FROM past p JOIN uses u ON u.event = p.event GROUP BY p.event;

INSERT INTO high
SELECT event, (SELECT e.time FROM earliest e WHERE e.of = r.member AND e.size > r.seq ORDER BY e.size LIMIT 1) FROM revocations r;
