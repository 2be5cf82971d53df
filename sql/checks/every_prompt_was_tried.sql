-- A prompt without its clique: it was drawn and never tried, and would fall out of the denominator.
SELECT prompts.prompt_id FROM prompts ANTI JOIN cliques USING (prompt_id)
