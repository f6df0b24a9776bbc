"""The functions that PostgreSQL brings: which of them any agent may call, which with introspection, and which only when granted.

Every other function of pg_catalog is never called: those that run SQL from a text or a file, read files, touch large objects, end
sessions, write to the WAL, change settings. The tables are of PostgreSQL 18, from pg_proc without those that only the server calls
(`internal`, `cstring`); `tests/identity/test_scope_builtins.py` holds them against a server.
"""

from __future__ import annotations

from typing import Final


def _table(rows: str) -> frozenset[str]:
    return frozenset(word for row in rows.splitlines() if not row.lstrip().startswith("#") for word in row.split())


# Their effect is their result, and their result depends on nothing but their arguments, the time, and the session itself.
SAFE: Final = _table(
    """
    # aggregates and windows
    any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop covar_samp cume_dist dense_rank every
    first_value json_agg json_agg_strict json_object_agg json_object_agg_strict json_object_agg_unique
    json_object_agg_unique_strict jsonb_agg jsonb_agg_strict jsonb_object_agg jsonb_object_agg_strict jsonb_object_agg_unique
    jsonb_object_agg_unique_strict lag last_value lead max min mode nth_value ntile percent_rank percentile_cont
    percentile_disc range_agg range_intersect_agg rank regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope
    regr_sxx regr_sxy regr_syy row_number stddev stddev_pop stddev_samp string_agg sum var_pop var_samp variance xmlagg
    # texts and bytes
    ascii bit_count bit_length btrim casefold char_length character_length chr concat concat_ws convert convert_from
    convert_to crc32 crc32c decode encode format get_bit get_byte hashtext hashtextextended initcap is_normalized left length
    like_escape lower lpad ltrim md5 normalize octet_length overlay parse_ident position quote_ident quote_literal
    quote_nullable regexp_count regexp_instr regexp_like regexp_match regexp_matches regexp_replace regexp_split_to_array
    regexp_split_to_table regexp_substr repeat replace reverse right rpad rtrim set_bit set_byte sha224 sha256 sha384 sha512
    similar_to_escape split_part starts_with string_to_array string_to_table strpos substr substring to_ascii to_bin to_hex
    to_oct translate unicode_assigned unistr upper
    # dates and times
    age clock_timestamp date_add date_bin date_part date_subtract date_trunc extract isfinite justify_days justify_hours
    justify_interval make_date make_interval make_time make_timestamp make_timestamptz now overlaps statement_timestamp
    timeofday timezone to_char to_date to_number to_timestamp transaction_timestamp
    # numbers
    abs acos acosd acosh asin asind asinh atan atan2 atan2d atand atanh cbrt ceil ceiling cos cosd cosh cot cotd degrees div
    erf erfc exp factorial floor gamma gcd lcm lgamma ln log log10 min_scale mod numeric_div_trunc pi pow power radians random
    random_normal round scale setseed sign sin sind sinh sqrt tan tand tanh trim_scale trunc
    # arrays, ranges, enums
    array_append array_cat array_dims array_fill array_length array_lower array_ndims array_position array_positions
    array_prepend array_remove array_replace array_reverse array_sample array_shuffle array_sort array_to_json array_to_string
    array_to_tsvector array_upper cardinality enum_first enum_last enum_range generate_series generate_subscripts isempty
    lower_inc lower_inf multirange num_nonnulls num_nulls range_merge trim_array unnest upper_inc upper_inf width_bucket
    # JSON and XML
    json_array_elements json_array_elements_text json_array_length json_build_array json_build_object json_each
    json_each_text json_extract_path json_extract_path_text json_object json_object_keys json_populate_record
    json_populate_recordset json_strip_nulls json_to_record json_to_recordset json_to_tsvector json_typeof
    jsonb_array_elements jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each
    jsonb_each_text jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_keys jsonb_path_exists
    jsonb_path_exists_tz jsonb_path_match jsonb_path_match_tz jsonb_path_query jsonb_path_query_array
    jsonb_path_query_array_tz jsonb_path_query_first jsonb_path_query_first_tz jsonb_path_query_tz jsonb_populate_record
    jsonb_populate_record_valid jsonb_populate_recordset jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls
    jsonb_to_record jsonb_to_recordset jsonb_to_tsvector jsonb_typeof row_to_json to_json to_jsonb xml xml_is_well_formed
    xml_is_well_formed_content xml_is_well_formed_document xmlcomment xmlexists xmltext xpath xpath_exists
    # text search
    get_current_ts_config numnode phraseto_tsquery plainto_tsquery querytree setweight strip to_tsquery to_tsvector ts_delete
    ts_filter ts_headline ts_rank ts_rank_cd tsquery_phrase tsvector_to_array websearch_to_tsquery
    # geometry and networks
    abbrev area bound_box broadcast center diagonal diameter family height host hostmask inet_merge inet_same_family isclosed
    ishorizontal isopen isparallel isperp isvertical macaddr8_set7bit masklen netmask network npoints pclose popen radius
    set_masklen slope width
    # casts that are written as calls
    bit bool box bpchar bytea char cidr circle date datemultirange daterange float4 float8 int2 int4 int4multirange int4range
    int8 int8multirange int8range interval line lseg macaddr macaddr8 money name numeric nummultirange numrange oid path
    pg_lsn point polygon text time timestamp timestamptz timetz tsmultirange tsrange tstzmultirange tstzrange varbit varchar
    xid
    # the session, its transaction, what a value is
    current_database current_query current_schema current_schemas current_user gen_random_uuid getdatabaseencoding
    icu_unicode_version lastval like oidvectortypes pg_advisory_unlock_all pg_backend_pid pg_client_encoding pg_collation_for
    pg_column_compression pg_column_size pg_current_snapshot pg_current_xact_id pg_current_xact_id_if_assigned
    pg_is_in_recovery pg_jit_available pg_listening_channels pg_size_bytes pg_size_pretty pg_snapshot_xip pg_snapshot_xmax
    pg_snapshot_xmin pg_trigger_depth pg_typeof pg_visible_in_snapshot pg_wal_lsn_diff session_user system_user txid_current
    txid_current_if_assigned txid_current_snapshot txid_snapshot_xip txid_snapshot_xmax txid_snapshot_xmin
    txid_visible_in_snapshot unicode_version uuid_extract_timestamp uuid_extract_version uuidv4 uuidv7 version
    """
)

# They tell of names, definitions, sizes and privileges.
INTROSPECTION: Final = _table(
    """
    acldefault aclexplode col_description format_type has_any_column_privilege has_column_privilege has_database_privilege
    has_foreign_data_wrapper_privilege has_function_privilege has_language_privilege has_schema_privilege
    has_sequence_privilege has_server_privilege has_table_privilege has_tablespace_privilege has_type_privilege
    obj_description pg_basetype pg_char_to_encoding pg_collation_is_visible pg_column_is_updatable pg_conversion_is_visible
    pg_database_size pg_describe_object pg_encoding_max_length pg_encoding_to_char pg_function_is_visible pg_get_constraintdef
    pg_get_expr pg_get_function_arg_default pg_get_function_arguments pg_get_function_identity_arguments
    pg_get_function_result pg_get_function_sqlbody pg_get_functiondef pg_get_indexdef pg_get_keywords
    pg_get_partition_constraintdef pg_get_partkeydef pg_get_replica_identity_index pg_get_ruledef pg_get_serial_sequence
    pg_get_statisticsobjdef pg_get_statisticsobjdef_columns pg_get_statisticsobjdef_expressions pg_get_triggerdef
    pg_get_userbyid pg_get_viewdef pg_has_role pg_identify_object pg_identify_object_as_address pg_index_column_has_property
    pg_index_has_property pg_indexam_has_property pg_indexes_size pg_is_other_temp_schema pg_my_temp_schema
    pg_opclass_is_visible pg_operator_is_visible pg_opfamily_is_visible pg_options_to_table pg_partition_ancestors
    pg_partition_root pg_partition_tree pg_relation_is_publishable pg_relation_is_updatable pg_relation_size
    pg_sequence_parameters pg_statistics_obj_is_visible pg_table_is_visible pg_table_size pg_timezone_names
    pg_total_relation_size pg_ts_config_is_visible pg_ts_dict_is_visible pg_ts_parser_is_visible pg_ts_template_is_visible
    pg_type_is_visible regclass row_security_active shobj_description to_regclass to_regcollation to_regnamespace to_regoper
    to_regoperator to_regproc to_regprocedure to_regrole to_regtype to_regtypemod
    """
)

# Only when a scope names them as `pg_catalog.name`: they hold something up, move something on, or tell where the database is.
GRANTABLE: Final = _table(
    """
    currval inet_client_addr inet_client_port inet_server_addr inet_server_port nextval pg_advisory_lock
    pg_advisory_lock_shared pg_advisory_unlock pg_advisory_unlock_shared pg_advisory_xact_lock pg_advisory_xact_lock_shared
    pg_notify pg_sleep pg_sleep_for pg_sleep_until pg_try_advisory_lock pg_try_advisory_lock_shared pg_try_advisory_xact_lock
    pg_try_advisory_xact_lock_shared pg_xact_status setval ts_debug ts_lexize ts_parse ts_token_type txid_status
    """
)

# Never, beside all others that begin with `pg_`.
NEVER: Final = _table(
    """
    amvalidate binary_upgrade_add_sub_rel_state binary_upgrade_create_empty_extension
    binary_upgrade_logical_slot_has_caught_up binary_upgrade_replorigin_advance binary_upgrade_set_missing_value
    binary_upgrade_set_next_array_pg_type_oid binary_upgrade_set_next_heap_pg_class_oid
    binary_upgrade_set_next_heap_relfilenode binary_upgrade_set_next_index_pg_class_oid
    binary_upgrade_set_next_index_relfilenode binary_upgrade_set_next_multirange_array_pg_type_oid
    binary_upgrade_set_next_multirange_pg_type_oid binary_upgrade_set_next_pg_authid_oid binary_upgrade_set_next_pg_enum_oid
    binary_upgrade_set_next_pg_tablespace_oid binary_upgrade_set_next_pg_type_oid binary_upgrade_set_next_toast_pg_class_oid
    binary_upgrade_set_next_toast_relfilenode binary_upgrade_set_record_init_privs brin_desummarize_range
    brin_summarize_new_values brin_summarize_range current_setting currtid2 cursor_to_xml cursor_to_xmlschema database_to_xml
    database_to_xml_and_xmlschema database_to_xmlschema fmgr_c_validator fmgr_internal_validator fmgr_sql_validator
    gin_clean_pending_list has_largeobject_privilege has_parameter_privilege lo_close lo_creat lo_create lo_export
    lo_from_bytea lo_get lo_import lo_lseek lo_lseek64 lo_open lo_put lo_tell lo_tell64 lo_truncate lo_truncate64 lo_unlink
    loread lowrite makeaclitem plpgsql_validator postgresql_fdw_validator query_to_xml query_to_xml_and_xmlschema
    query_to_xmlschema schema_to_xml schema_to_xml_and_xmlschema schema_to_xmlschema set_config table_to_xml
    table_to_xml_and_xmlschema table_to_xmlschema ts_rewrite ts_stat
    """
)

# Never, in whatever schema an extension put them: they run SQL from a text, or leave the session, or read files.
NEVER_OF_EXTENSIONS: Final = _table(
    """
    connectby crosstab crosstab2 crosstab3 crosstab4 crosstabn dblink dblink_build_sql_delete dblink_build_sql_insert
    dblink_build_sql_update dblink_cancel_query dblink_close dblink_connect dblink_connect_u dblink_disconnect dblink_exec
    dblink_fetch dblink_get_connections dblink_get_result dblink_open dblink_send_query lo_manage lo_oid pg_file_read
    pg_file_rename pg_file_sync pg_file_unlink pg_file_write xpath_table xslt_process
    """
)
