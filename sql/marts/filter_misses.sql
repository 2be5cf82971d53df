-- Grain: the audit.
-- Source: verdicts. Of the prompts that the clique test did not flag, a slice drawn by hash kept its images: what is
-- extracted there, weighted by 1 / keep_probability, estimates what the filter misses.
WITH final AS (
    SELECT
        count(*) FILTER (NOT flagged) AS prompts_unflagged,
        count(*) FILTER (NOT flagged AND keep_rule IN ('slice', 'all')) AS prompts_checked,
        count(*) FILTER (NOT flagged AND keep_rule IN ('slice', 'all') AND extracted) AS prompts_missed,
        coalesce(sum(1 / keep_probability) FILTER (NOT flagged AND keep_rule IN ('slice', 'all') AND extracted), 0)
            AS prompts_missed_estimate,
        count(*) FILTER (NOT flagged AND keep_rule IN ('slice', 'all') AND extracted_calibrated)
            AS prompts_missed_calibrated,
        coalesce(sum(1 / keep_probability) FILTER (NOT flagged AND keep_rule IN ('slice', 'all') AND extracted_calibrated), 0)
            AS prompts_missed_calibrated_estimate
    FROM verdicts
)

SELECT * FROM final
