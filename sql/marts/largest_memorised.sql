-- Grain: one setting of all axes but the number of training pictures, of which the sweep has several, one rule, and
-- what is counted: training pictures that were extracted, or generations that the rule calls.
-- Source: settings, leaks, attacked (staging). half: where the share is one half, by logistic regression in the
-- logarithm of images over models, with Fieller's interval; none where the share goes up through it and down again.
-- ninety: the largest number at which the mean share over models is 90% or more and is so at all smaller ones (of
-- generations by ratio that is Gu's effective model memorisation). Pictures can't come back more often than they are
-- asked for: with few generations the share of pictures falls by that alone.
WITH sizes AS (
    SELECT
        settings.axis,
        settings.setting,
        attacked.images,
        leaks.rule,
        counts.counted,
        CASE counts.counted WHEN 'pictures' THEN leaks.extracted ELSE leaks.called END AS successes,
        CASE counts.counted WHEN 'pictures' THEN leaks.pictures ELSE leaks.made END AS trials
    FROM settings
    JOIN attacked ON attacked.model_id = settings.model_id
    JOIN leaks ON leaks.model_id = settings.model_id AND leaks.against = 'members'
    CROSS JOIN (SELECT unnest(['pictures', 'generations']) AS counted) AS counts
    WHERE settings.axis = 'images'
        -- Where the pool grows with them, as halves need it, both are one axis.
        OR (settings.axis = 'images, pool' AND attacked.pool > 0)
),

means AS (
    SELECT axis, setting, rule, counted, images, avg(successes / trials) AS share
    FROM sizes
    WHERE trials > 0
    GROUP BY ALL
),

runs AS (
    SELECT *, bool_and(share >= 0.9) OVER (
        PARTITION BY axis, setting, rule, counted ORDER BY images
    ) AS ninety
    FROM means
),

largest AS (
    SELECT
        axis,
        setting,
        rule,
        counted,
        max(images) FILTER (ninety) AS ninety,
        min(images) AS smallest,
        max(images) AS largest,
        arg_min(share, images) AS share_at_smallest,
        arg_max(share, images) AS share_at_largest,
        count(*) AS sizes
    FROM runs
    GROUP BY ALL
    HAVING count(*) > 1
),

fits AS (
    SELECT
        axis,
        setting,
        rule,
        counted,
        count(*) AS models,
        half_point(
            list(CAST(images AS DOUBLE) ORDER BY images, successes, trials),
            list(CAST(successes AS BIGINT) ORDER BY images, successes, trials),
            list(CAST(trials AS BIGINT) ORDER BY images, successes, trials)
        ) AS fit
    FROM sizes
    GROUP BY ALL
),

final AS (
    SELECT
        largest.axis,
        largest.setting,
        largest.rule,
        largest.counted,
        fits.models,
        largest.sizes,
        largest.smallest,
        largest.largest,
        largest.share_at_smallest,
        largest.share_at_largest,
        fits.fit[1] AS half,
        fits.fit[2] AS half_lower,
        fits.fit[3] AS half_upper,
        fits.fit[4] AS slope,
        fits.fit[5] AS slope_lower,
        fits.fit[6] AS slope_upper,
        largest.ninety
    FROM largest
    JOIN fits
        ON fits.axis = largest.axis
        AND fits.setting = largest.setting
        AND fits.rule = largest.rule
        AND fits.counted = largest.counted
)

SELECT * FROM final
ORDER BY axis, setting, counted DESC, rule
