{#-
Dunning's G2 (Dunning, "Accurate Methods for the Statistics of Surprise and Coincidence", 1993): how
little chance explains that n_together of n_baskets hold both products, when n_one and n_other hold
the one and the other. Twice the sum over the two-by-two table of observed x ln(observed /
expected); >= 0.
-#}
{% macro log_likelihood(n_together, n_one, n_other, n_baskets) -%}
2 * (
    {{ observed_by_surprise(n_together, n_one, n_other, n_baskets) }}
    + {{ observed_by_surprise(
        n_one ~ ' - ' ~ n_together, n_one, n_baskets ~ ' - ' ~ n_other, n_baskets
    ) }}
    + {{ observed_by_surprise(
        n_other ~ ' - ' ~ n_together, n_baskets ~ ' - ' ~ n_one, n_other, n_baskets
    ) }}
    + {{ observed_by_surprise(
        n_baskets ~ ' - ' ~ n_one ~ ' - ' ~ n_other ~ ' + ' ~ n_together,
        n_baskets ~ ' - ' ~ n_one, n_baskets ~ ' - ' ~ n_other, n_baskets
    ) }}
)
{%- endmacro %}


{#- One cell of the table; an empty cell adds nothing. -#}
{% macro observed_by_surprise(n_cell, n_row, n_column, n_all) -%}
case
    when {{ n_cell }} > 0
        then
            ({{ n_cell }})
            * ln(({{ n_cell }})::double * {{ n_all }} / ({{ n_row }}) / ({{ n_column }}))
    else 0
end
{%- endmacro %}
