# The macros that an extension of scripted modules calls, with the rules of Slicer's own: a listed
# file that is not there is an error, an unlisted file is neither copied nor installed, and
# installing takes all that lies in the build tree's folder of scripted modules.
include(CTest)

macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(STUB "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES"
    ${ARGN})
  if(STUB_UNPARSED_ARGUMENTS OR NOT STUB_NAME)
    message(FATAL_ERROR "Unknown keywords or no NAME: ${STUB_UNPARSED_ARGUMENTS}")
  endif()
  set(stub_folder ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
  set(stub_copies)
  foreach(stub_file IN LISTS STUB_SCRIPTS STUB_RESOURCES)
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${stub_file})
      message(FATAL_ERROR "${STUB_NAME}: ${stub_file} does not exist")
    endif()
    add_custom_command(
      OUTPUT ${stub_folder}/${stub_file}
      COMMAND ${CMAKE_COMMAND} -E copy
        ${CMAKE_CURRENT_SOURCE_DIR}/${stub_file} ${stub_folder}/${stub_file}
      DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${stub_file}
      VERBATIM
    )
    list(APPEND stub_copies ${stub_folder}/${stub_file})
  endforeach()
  add_custom_target(Copy${STUB_NAME}PythonFiles ALL DEPENDS ${stub_copies})
  install(
    DIRECTORY ${stub_folder}/
    DESTINATION ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}
    COMPONENT RuntimeLibraries
    USE_SOURCE_PERMISSIONS
  )
endmacro()

# Slicer's own runs through ExternalData_add_test, which adds the same test.
macro(slicer_add_python_unittest)
  cmake_parse_arguments(STUB "" "TESTNAME_PREFIX;SCRIPT" "SLICER_ARGS" ${ARGN})
  get_filename_component(stub_name ${STUB_SCRIPT} NAME_WE)
  string(CONCAT stub_code
    "import slicer.testing; slicer.testing.runUnitTest("
    "['${CMAKE_CURRENT_BINARY_DIR}', '${CMAKE_CURRENT_SOURCE_DIR}'], '${stub_name}')")
  add_test(
    NAME py_${STUB_TESTNAME_PREFIX}${stub_name}
    COMMAND ${Slicer_LAUNCHER_EXECUTABLE} --no-splash --testing ${STUB_SLICER_ARGS}
      --additional-module-paths ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}
      --python-code "${stub_code}"
  )
endmacro()
