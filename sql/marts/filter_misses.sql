-- Grain: the audit.
-- Source: verdicts. Every prompt is judged by the generation nearest to its own image, which is stored whatever the
-- clique test says: so what the filter misses of copies is counted. The paper's rule asks for other images too: of the
-- prompts that the test did not flag, a slice drawn by hash kept all its images, and what is extracted there, weighted
-- by 1 / keep_probability, estimates what the filter misses; where nothing was checked there is no estimate: null, not
-- 0. Prompts that lost pictures or matches to "eidetic forget" are left out: what they gave back can't be known any
-- more.
WITH unflagged AS (
    SELECT
        copied,
        extracted_calibrated,
        extraction_weight,
        keep_rule IN ('slice', 'all') AS checked
    FROM verdicts
    WHERE NOT flagged AND stratum <> 'forgotten'
),

final AS (
    SELECT
        count(*) AS prompts_unflagged,
        CASE WHEN count(copied) > 0 THEN count(*) FILTER (copied) END AS prompts_missed,
        CASE WHEN count(extracted_calibrated) > 0 THEN count(*) FILTER (extracted_calibrated) END
            AS prompts_missed_calibrated,
        count(*) FILTER (checked) AS prompts_checked,
        count(*) FILTER (extraction_weight > 0) AS prompts_missed_extracted,
        CASE WHEN count(*) = 0 OR count(*) FILTER (checked) > 0 THEN coalesce(sum(extraction_weight), 0) END
            AS prompts_missed_extracted_estimate
    FROM unflagged
)

SELECT * FROM final
