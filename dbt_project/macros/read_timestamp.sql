{#
A text as a naive UTC timestamp, NULL when it is none. Read are:

- ISO dates and timestamps: 2011-12-09, 2011-12-09 08:26, 2011-12-09T08:26:00.5Z. No offset: UTC.
- the same with an offset: 2011-12-09T08:26:00+05:30 is 02:56 UTC.
- 20111209, as many a shop exports its days.
- seconds or milliseconds since 1970, with their fraction. From 100,000,000,000 on they are
  milliseconds: as seconds that would be the year 5138, as milliseconds it is 1973.

Numbers below 100,000,000 (seconds up to 1973, and what is before 1970) are no times: the years, days of
spreadsheets and mistyped dates among them would be days of 1970, and nobody would be told. Nor are
numbers of 14 digits: rather 20111209082600 than milliseconds after 2286.

The cast to TIMESTAMP drops an offset without a word; the one to TIMESTAMPTZ heeds it and takes four
times as long. So a text that has no room for an offset goes to the first.
#}
{% macro read_timestamp(text) -%}
    case
        when length({{ text }}) = 19 and {{ text }}[17] = ':' then try_cast({{ text }} as timestamp)
        when length({{ text }}) = 10 and {{ text }}[5] = '-' then try_cast({{ text }} as timestamp)
        when length({{ text }}) = 20 and {{ text }}[17] = ':' and {{ text }}[20] = 'Z'
            then try_cast({{ text }} as timestamp)
        when try_cast({{ text }} as timestamptz) is not null
            then case
                when isfinite(try_cast({{ text }} as timestamptz))
                    then try_cast({{ text }} as timestamptz) at time zone 'UTC'
            end
        when length({{ text }}) = 8 and {{ text }} between '19000101' and '99991231'
            then try_strptime({{ text }}, '%Y%m%d')
        when try_cast({{ text }} as double) < 100000000 then null
        when try_cast({{ text }} as double) < 100000000000
            then make_timestamp((try_cast({{ text }} as double) * 1000000)::bigint)
        when try_cast({{ text }} as double) < 10000000000000
            then make_timestamp((try_cast({{ text }} as double) * 1000)::bigint)
    end
{%- endmacro %}
