-- Grain: the audit.
-- Source: verdicts. Of the prompts that the clique test did not flag, a slice drawn by hash kept its images: what is
-- extracted there, weighted by 1 / keep_probability, estimates what the filter misses. Where nothing was checked, or no
-- prompt has a calibrated verdict, there is no estimate: null, not 0. Prompts that lost pictures or matches to "eidetic
-- forget" are left out: what they gave back can't be known any more.
WITH unflagged AS (
    SELECT
        keep_rule IN ('slice', 'all') AS checked,
        checked AND extracted AS missed,
        checked AND extracted_calibrated AS missed_calibrated,
        1 / keep_probability AS weight
    FROM verdicts
    WHERE NOT flagged AND stratum <> 'forgotten'
),

counted AS (
    SELECT
        count(*) AS prompts_unflagged,
        count(*) FILTER (checked) AS prompts_checked,
        count(*) FILTER (missed) AS prompts_missed,
        coalesce(sum(weight) FILTER (missed), 0) AS estimate,
        count(*) FILTER (missed_calibrated) AS missed_calibrated,
        coalesce(sum(weight) FILTER (missed_calibrated), 0) AS estimate_calibrated,
        (SELECT count(extracted_calibrated) FROM verdicts) > 0 AS has_calibrated
    FROM unflagged
),

final AS (
    SELECT
        prompts_unflagged,
        prompts_checked,
        prompts_missed,
        CASE WHEN prompts_unflagged = 0 OR prompts_checked > 0 THEN estimate END AS prompts_missed_estimate,
        CASE WHEN has_calibrated THEN missed_calibrated END AS prompts_missed_calibrated,
        CASE WHEN has_calibrated AND (prompts_unflagged = 0 OR prompts_checked > 0) THEN estimate_calibrated END
            AS prompts_missed_calibrated_estimate
    FROM counted
)

SELECT * FROM final
