-- Takes: what a picture's digest says (samples.drift), its gap and the lake's lowest one (sql/staging/drift_rule.sql),
-- either of which may be null. Gives: unchanged, changed or unknown. A digest is asked first: it is sure.
CREATE MACRO drift_of(drift, gap, lowest_gap) AS CASE
    WHEN drift <> 'unknown' OR gap IS NULL OR lowest_gap IS NULL THEN drift
    WHEN gap < lowest_gap THEN 'changed'
    ELSE 'unchanged'
END
