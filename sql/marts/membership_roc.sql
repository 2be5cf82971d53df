-- Grain: one corner of the ROC curve of one attack on all models of a cohort at one step.
-- Source: membership_scores, models. Where the timestep was chosen, each model is at its own, and curves of fewer
-- draws and without flips stand beside; else each timestep has a curve, of all draws and flips. Of the corners within a
-- twentieth of a power of ten of the false positive rate two are left. It takes members and non-members.
WITH scored AS (
    SELECT
        membership_scores.*,
        models.cohort,
        models.step,
        models.family,
        bool_or(chosen) OVER curves AS has_chosen,
        max(draws) OVER curves AS most_draws,
        bool_or(flips) OVER curves AS any_flips
    FROM membership_scores
    JOIN models ON models.model_id = membership_scores.model_id
    WHERE score IS NOT NULL
    WINDOW curves AS (PARTITION BY models.cohort, models.step, attack)
),

kept AS (
    SELECT *, CASE WHEN NOT has_chosen THEN timestep END AS group_timestep
    FROM scored
    WHERE chosen OR NOT has_chosen AND draws = most_draws AND flips = any_flips
),

gathered AS (
    SELECT
        cohort,
        step,
        family,
        attack,
        CASE WHEN has_chosen THEN 'chosen' ELSE 'fixed' END AS selection,
        CASE WHEN min(timestep) = max(timestep) THEN min(timestep) END AS timestep,
        draws,
        flips,
        count(DISTINCT model_id) AS models,
        membership_roc(list(score), list(member)) AS corners
    FROM kept
    GROUP BY cohort, step, family, attack, has_chosen, group_timestep, draws, flips
    HAVING bool_or(member) AND NOT bool_and(member)
),

points AS (
    SELECT * EXCLUDE (corners), unnest(range(1, len(corners) + 1)) AS corner, unnest(corners) AS rates
    FROM gathered
),

final AS (
    SELECT
        cohort,
        step,
        family,
        attack,
        selection,
        timestep,
        draws,
        flips,
        models,
        corner,
        rates[1] AS false_positive_rate,
        rates[2] AS true_positive_rate
    FROM points
)

SELECT * FROM final
ORDER BY cohort, step, attack, selection, timestep NULLS FIRST, draws, flips, corner
